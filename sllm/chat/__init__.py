"""Conversations, as callers send them and chat templates see them."""
