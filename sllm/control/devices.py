"""Accelerators of nodes, as operators are told of them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator of a node, as operators are told of it."""

    index: int
    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    """As measured, whoever uses the rest."""
    weights_capacity_bytes: int
    weights_used_bytes: int
    kv_capacity_bytes: int
    kv_used_bytes: int
