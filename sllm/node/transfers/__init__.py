"""How bytes get there: imports, reads, whose turn it is, and how fast links are."""
