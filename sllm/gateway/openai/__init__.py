"""OpenAI's protocol: what its fields mean here, and answers in its own types."""
