"""Checkpoints that lie elsewhere: object stores, web servers, the Hugging Face hub."""
