"""What the control plane knows: in memory, on the event loop alone; and what outlives it."""
