"""Certificates, and who is let in with which."""
