"""Layers that one process computes for another, whose weights of them are still on their way."""
