"""Tries a model before it is deployed: whether a worker could serve it, and serve it right."""
