"""The inference engine, and transformers' continuous batching as one."""
