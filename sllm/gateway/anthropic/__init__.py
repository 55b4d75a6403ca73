"""Anthropic's protocol: messages, told as its own clients read them."""
