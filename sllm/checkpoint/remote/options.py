"""How remote sources are read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """Bounds of what is asked of a server, and of how long it is waited for."""

    connect_seconds: float = 5.0
    """For a connection to be made."""
    stall_seconds: float = 15.0
    """Without a byte from the server, after which a request is given up and made again."""
    request_seconds: float = 300.0
    """For one request and all of its answer."""
    retries: int = 6
    """Of one request, after 5xx, 429, and connections that break; what has come is not asked for
    again."""
    retry_seconds: float = 60.0
    """After the start of a request nothing more of it is tried again."""
    backoff_seconds: float = 5.0
    """Between two tries, at most."""
    concurrency: int = 8
    """Requests for small files, headers and sizes at once; those for weights are as many as there
    are threads that fill chunks."""
