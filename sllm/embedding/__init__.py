"""Texts as vectors and scores: what a model is for, and what may be asked of it."""
