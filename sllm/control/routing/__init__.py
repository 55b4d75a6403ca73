"""Requests: taken or refused, relayed from the instances that serve them, moved meanwhile."""
