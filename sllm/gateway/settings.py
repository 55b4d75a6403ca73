"""What a gateway is started with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sllm import bounds
from sllm.chat.images import MAX_BYTES_OF_ALL

MIB: Final = 1024**2
_TEXT_BYTES: Final = 16 * MIB
_IMAGE_BYTES: Final = 4 * MAX_BYTES_OF_ALL // 3
"""Of all images that a request may have, in base64."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """One gateway. Times are seconds, sizes bytes."""

    controls: tuple[str, ...]
    """host:port of each control plane, the preferred one first: another is asked if it is gone."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """0 takes any that is free."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which it may be called on this machine, beside localhost's own: a proxy's."""
    tls: Path | None = None
    """Directory with its tls.crt and tls.key and the cluster's ca.crt, for control planes' ports
    of peers. None: it calls them in the clear."""
    https: Path | None = None
    """Directory with the tls.crt and tls.key that HTTPS is served with. None: HTTP."""
    zone: str = ""
    """Where it is, and so where its callers' requests come from. Empty: nobody says."""
    metrics_port: int | None = None
    """Where Prometheus is served, and nowhere else; 0 takes any. None: on the port of callers."""
    insecure: bool = False
    """Whether HTTP may be served beyond this machine."""
    max_body_bytes: int = _TEXT_BYTES + _IMAGE_BYTES
    """Of a request that is no file."""
    max_file_bytes: int = 512 * MIB
    """Of a file that is uploaded."""
    files_directory: Path | None = None
    """For files of batches, which gateways may share. None: one that goes with the gateway."""
    max_files_bytes: int = 8 * 1024 * MIB
    """Of all files together."""
    body_seconds: float = 60.0
    """For a request's body to arrive, or the next part of a file's."""
    max_held_bytes: int = 1024 * MIB
    """Of the bodies of all requests under way, files apart."""
    max_arriving_bytes: int = 2 * 1024 * MIB
    """Of all files that are on their way."""
    write_seconds: float = 600.0
    """For a caller to take a part of its answer."""
    header_seconds: float = 20.0
    """For a request's head to arrive, from when the connection is there."""
    idle_seconds: float = 75.0
    """That a connection is kept without a request."""
    max_requests: int = 10_000
    """Under way at once; more are told to come again."""
    hold_seconds: float = 1.0
    """For which a stream's head waits for a first token, so that failures have a status."""
    pulse_seconds: float = 10.0
    """Between two comments in a stream that has nothing else to say."""
    linger_seconds: float = 30.0
    """For which a generation whose caller has named it goes on when the gateway is lost."""
    stop_seconds: float = 5.0
    """That requests under way have to end when the gateway is stopped."""


def addresses(text: str) -> Sequence[str]:
    """The control planes in a list such as "10.0.0.1:50051,10.0.0.2:50051".

    Raises:
        errors.InvalidArgument: One is no address, or there is none.
    """
    found = [one.strip() for one in text.split(",") if one.strip()]
    return [bounds.address(one, "--control") for one in found or [text]]
