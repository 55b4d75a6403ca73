"""Pages of KV caches that outlive their instance, in the pool and on SSD."""
