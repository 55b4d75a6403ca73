"""Doors for what speaks HTTP: a client of the control plane over gRPC, without state of its own."""
