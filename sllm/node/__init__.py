"""The node agent: it owns the weights on its node, and runs instances."""
