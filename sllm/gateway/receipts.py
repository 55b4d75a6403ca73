"""Where the time went, as an answer tells it."""

import dataclasses
from typing import Any

from sllm import Receipt


def own(request_id: str, receipt: Receipt) -> dict[str, Any]:
    """Sllm's part of an answer: beside what the protocol has, which clients pass on unread."""
    return {"request_id": request_id, "receipt": dataclasses.asdict(receipt)}


def server_timing(receipt: Receipt) -> dict[str, str]:
    """The same as a header, in milliseconds (W3C Server Timing)."""
    phases = [(one.kind.lower(), one.duration) for one in receipt.phases]
    told = [*phases, ("first_token", receipt.time_to_first_token)]
    return {"server-timing": ", ".join(f"{name};dur={1000 * took:.1f}" for name, took in told)}
