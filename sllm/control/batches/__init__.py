"""Batches: taken whole, run with what other requests leave, and kept until they are read."""
