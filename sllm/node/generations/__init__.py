"""Generations on this node: read, kept without a reader, and moved from node to node."""
