"""State dicts written as checkpoints."""
