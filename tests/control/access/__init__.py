"""Callers: who comes in, and what each may do."""
