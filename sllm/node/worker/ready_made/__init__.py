"""Weights as an engine's kernels read them, made once and kept as a checkpoint of their own."""
