"""What a node measures, on the global meter."""

from collections.abc import Callable, Iterable, Mapping

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from sllm.buckets import SECONDS
from sllm.node.tiers.types import Link

_meter = metrics.get_meter("sllm")

_loaded = _meter.create_counter(
    "sllm.load.bytes", unit="By", description="Bytes brought up, by phase."
)
_load_time = _meter.create_histogram(
    "sllm.load.duration",
    unit="s",
    description="Loads that have succeeded, by phase.",
    explicit_bucket_boundaries_advisory=SECONDS,
)
_refusals = _meter.create_counter(
    "sllm.ssd.refusals", unit="{import}", description="Imports that the SSD tier's disk refused."
)


def record_refusal() -> None:
    """Counts an import that the disk could not take."""
    _refusals.add(1)


_quarantined = _meter.create_counter(
    "sllm.checkpoint.quarantined", description="Copies on SSD that were found to be corrupt."
)


def record_quarantine() -> None:
    """Counts a copy that was set aside."""
    _quarantined.add(1)


def record_load(phase: str, size_bytes: int, seconds: float) -> None:
    """Counts a load that has succeeded."""
    _loaded.add(size_bytes, {"phase": phase})
    _load_time.record(seconds, {"phase": phase})


def observe(
    used: Callable[[], Mapping[str, int]],
    capacity: Callable[[], Mapping[str, int]],
    instances: Callable[[], int],
    links: Callable[[], Iterable[Link]],
) -> None:
    """Registers what is asked whenever metrics are read: bytes by tier, instances, and links."""

    def by_tier(ask: Callable[[], Mapping[str, int]]) -> Callable[..., Iterable[Observation]]:
        return lambda _: [Observation(size, {"tier": tier}) for tier, size in ask().items()]

    def count(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(instances())]

    def by_link(value: Callable[[Link], float]) -> Callable[..., Iterable[Observation]]:
        return lambda _: [
            Observation(value(link), {"from": link.from_tier.name, "to": link.to_tier.name})
            for link in links()
        ]

    for name, callback, unit, description in (
        ("sllm.link.queued", by_link(lambda link: link.queued_bytes), "By", "Bytes to be moved."),
        ("sllm.link.in_flight", by_link(lambda link: link.in_flight_bytes), "By", "Of these, now."),
        ("sllm.link.speed", by_link(lambda link: link.bytes_per_second), "By/s", "As observed."),
        ("sllm.tier.used", by_tier(used), "By", "Bytes taken, reservations included."),
        ("sllm.tier.capacity", by_tier(capacity), "By", "Bytes that there are."),
        ("sllm.instances", count, "{instance}", "Instances, starting ones included."),
    ):
        _meter.create_observable_gauge(name, [callback], unit=unit, description=description)
