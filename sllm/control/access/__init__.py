"""Callers: who they are, what each may do, and a line of what they have done."""
