"""Certificates: who a process of the cluster is, and how it meets the others."""
