"""Deployments: changed by callers, prepared on a node, scaled, and cleared away."""
