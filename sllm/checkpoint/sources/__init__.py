"""Where checkpoints come from, and what is found there."""
