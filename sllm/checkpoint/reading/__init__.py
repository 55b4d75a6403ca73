"""Checkpoints read: whole, tensor by tensor, verified, inspected."""
