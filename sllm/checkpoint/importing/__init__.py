"""Sources made into checkpoints, chunk by chunk."""
