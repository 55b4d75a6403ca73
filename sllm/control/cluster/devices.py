"""Accelerators of nodes, as they report them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator of a node; see the protocol's Device."""

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
    reserved_bytes: int = 0
    idle_bytes: int = 0
