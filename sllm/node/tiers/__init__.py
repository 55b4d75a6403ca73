"""Where checkpoints lie: SSD and the pool, and who holds how much of them."""
