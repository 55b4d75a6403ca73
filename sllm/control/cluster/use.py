"""What the router does with an instance."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Use:
    """As of one moment; replaced, never changed."""

    node_id: str
    in_flight: int
    """Requests that it has given to the instance and that have not ended."""
    last_used: float
    """Clock's seconds when the last request came or went, or the instance became ready."""
    kept_until: float = 0.0
    """Clock's seconds until which a request has wished it to stay."""
    demand: float = -math.inf
    """How much its deployment was asked for of late: the binary logarithm of the requests, those
    long ago counting less, against a fixed moment. Doubled demand is one more."""
