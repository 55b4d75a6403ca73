"""What operators have the cluster do, and what they watch."""
