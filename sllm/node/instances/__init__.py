"""Instances: their life, their start, and this side of their worker and zygote."""
