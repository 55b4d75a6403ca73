"""Nodes on links of bounded rate, and an object store beside them: for `bench.peers`."""
