"""What is measured of pages that are kept, on the global meter."""

from collections.abc import Callable, Iterable, Mapping

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

_meter = metrics.get_meter("sllm")

_read = _meter.create_counter(
    "sllm.kept.read", unit="By", description="Pages that prompts got, by the tier that had them."
)
_written = _meter.create_counter(
    "sllm.kept.written", unit="By", description="Pages that were written to the pool."
)
_corrupt = _meter.create_counter(
    "sllm.kept.corrupt", unit="{page}", description="Pages that were not what they should be."
)


def record_read(tier: str, size_bytes: int) -> None:
    """Counts pages that a prompt has got."""
    _read.add(size_bytes, {"tier": tier})


def record_written(size_bytes: int) -> None:
    """Counts pages that can be found from now on."""
    _written.add(size_bytes)


def record_corrupt(pages: int) -> None:
    """Counts pages whose segments go."""
    _corrupt.add(pages)


def observe(used: Callable[[], Mapping[str, int]]) -> None:
    """Registers what is asked whenever metrics are read: bytes by tier."""

    def by_tier(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(size, {"tier": tier}) for tier, size in used().items()]

    _meter.create_observable_gauge(
        "sllm.kept.used", [by_tier], unit="By", description="Taken by pages that are kept."
    )
