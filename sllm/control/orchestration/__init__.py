"""Brings instances and nodes into line with what should be."""
