"""The command line: a client, and what starts servers."""
