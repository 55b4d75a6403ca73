"""The control plane: what should exist, where it runs, and every request on its way."""
