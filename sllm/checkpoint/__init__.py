"""Checkpoints made for loading: what they consist of, and how they are written and read."""
