"""Those who share a cluster: their names, what each may take, and what each has taken."""
