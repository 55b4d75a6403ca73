"""The HTTP door: OpenAI's and Anthropic's protocols, answered by a control plane over gRPC."""
