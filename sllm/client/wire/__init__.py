"""Between what callers say and see and the protocol's messages."""
