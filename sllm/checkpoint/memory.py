"""Memory that checkpoints are read into."""

from collections.abc import Callable

ChunkMemory = Callable[[int, int], memoryview]
"""Gives the memory for a chunk of a partition, both by index: block-aligned, writable, touched,
and at least as large as the chunk. Called from any thread; each call gives a view of its own."""
