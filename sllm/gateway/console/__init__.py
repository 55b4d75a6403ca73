"""The console: a page that shows the cluster and operates it, and what keeps others off it."""
