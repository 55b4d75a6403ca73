"""Which adapter a request is for, and its hold on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sllm.node.transfers.work import Step


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """An adapter, as a request names it."""

    deployment: str
    """Its name."""
    source: str
    dtype: str | None
    """Name of a torch dtype to convert to. None: as stored."""
    pack: bool
    identity: str
    """What the source must be."""
    keep_alive: float
    """Seconds for which it stays without requests."""

    @property
    def key(self) -> tuple[str, str | None]:
        """The same for the same weights."""
        return self.identity, self.dtype

    @property
    def name(self) -> str:
        """The same as one word: what an identity is converted to makes another adapter of it."""
        return named(self.identity, self.dtype)


def named(identity: str, dtype: str | None) -> str:
    """See `AdapterSpec.name`."""
    return f"{identity}/{dtype}" if identity and dtype else identity


class AdapterUse:
    """One request's hold on an adapter."""

    def __init__(
        self, adapter_id: str, release: Callable[[], None], steps: Sequence[Step] | None
    ) -> None:
        self.adapter_id = adapter_id
        """That the worker knows it by."""
        self.steps = steps
        """Transfers of the load that was waited for. None: it was there."""
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Gives it back. A second call does nothing."""
        release, self._release = self._release, None
        if release:
            release()
