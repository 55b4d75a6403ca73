"""Between our types and the protocol's messages, and the client of nodes."""
