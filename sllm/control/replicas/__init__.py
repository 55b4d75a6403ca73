"""One of several control planes: it answers calls, or passes them on to the one that leads."""
