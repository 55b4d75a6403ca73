"""Engines with what a worker and its zygote need around them, each behind the same interface."""
