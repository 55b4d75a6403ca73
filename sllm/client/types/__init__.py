"""What callers say and see."""
