"""Other nodes as a tier: chunks of checkpoints had from them, and given to them."""
