"""Requests under way: their line, their slots, how far they are and how long they take."""
