"""Experts on demand: a mixture of experts of which only a part is in memory at a time."""
