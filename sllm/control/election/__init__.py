"""Which of several control planes leads, and for how long it may be sure of that."""
