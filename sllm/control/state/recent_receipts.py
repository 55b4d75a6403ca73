"""Receipts of the requests that ended last."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sllm import errors
from sllm.control.types.receipts import Receipt

KEPT: Final = 1_000
"""Of some 2 KiB each."""


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """A request that has had a token and has ended."""

    request_id: str
    deployment: str
    receipt: Receipt


class RecentReceipts:
    """As many as it keeps; the oldest go first."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._ended: OrderedDict[str, EndedRequest] = OrderedDict()

    def add(self, request_id: str, deployment: str, receipt: Receipt | None) -> None:
        """Takes a request in that has ended; without a receipt it has had no token."""
        if receipt is None:
            return
        self._ended.pop(request_id, None)  # an id may be used again
        self._ended[request_id] = EndedRequest(request_id, deployment, receipt)
        if len(self._ended) > self._kept:
            self._ended.popitem(last=False)

    def find(
        self, request_id: str, sees: Callable[[str], bool] = lambda deployment: True
    ) -> EndedRequest:
        """The request of this id, or the one that ended last if it is empty.

        Args:
            request_id: Its whole id.
            sees: Of which deployments requests are told.

        Raises:
            errors.RequestNotFound: There is none, or no longer.
        """
        if request_id:
            found = self._ended.get(request_id)
        else:
            told = (one for one in reversed(self._ended.values()) if sees(one.deployment))
            found = next(told, None)
        if found is None:
            which = f"of request {request_id!r}" if request_id else "of any request"
            raise errors.RequestNotFound(
                f"there is no receipt {which}: the last {self._kept} that have ended with a token "
                "are kept, until the control plane is restarted"
            )
        return found
