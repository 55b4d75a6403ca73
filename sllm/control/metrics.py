"""What the control plane measures, on the global meter."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from sllm.buckets import SECONDS
from sllm.control.tenants.usage import Usage
from sllm.control.types.receipts import StartRecord

_meter = metrics.get_meter("sllm")
_RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.33, 2.0, 4.0, 10.0)
"""Bounds of buckets of an estimate over what it came to."""

requests = _meter.create_counter(
    "sllm.requests", unit="{request}", description="Requests that have ended, by outcome."
)
late_refusals = _meter.create_counter(
    "sllm.tenant.refusals.late",
    unit="{call}",
    description="Calls that were refused late, because their tenant's are refused that often.",
)
generated_tokens = _meter.create_counter(
    "sllm.tokens.generated", unit="{token}", description="Tokens relayed to callers."
)
time_to_first_token = _meter.create_histogram(
    "sllm.time_to_first_token",
    unit="s",
    description="From the router's taking a request to its relaying the first token.",
    explicit_bucket_boundaries_advisory=SECONDS,
)
migrations = _meter.create_counter(
    "sllm.migrations",
    unit="{migration}",
    description="Generations that have gone on elsewhere, by reason.",
)
cache_moves = _meter.create_counter(
    "sllm.migration.caches",
    unit="{migration}",
    description="Generations that have moved, by the way in which their KV cache has come.",
)
cache_bytes = _meter.create_counter(
    "sllm.migration.page_bytes",
    unit="By",
    description="Pages of KV caches that have come with generations.",
)
migration_seconds = _meter.create_histogram(
    "sllm.migration.duration",
    unit="s",
    description="From the first round to all going on at the destination, of what moves together.",
    explicit_bucket_boundaries_advisory=SECONDS,
)
move_estimate_ratio = _meter.create_histogram(
    "sllm.migration.estimate_ratio",
    unit="1",
    description="What placement expected a move to take, over what it took.",
    explicit_bucket_boundaries_advisory=_RATIOS,
)
transfer_estimate_ratio = _meter.create_histogram(
    "sllm.migration.transfer_estimate_ratio",
    unit="1",
    description="What moving generations to where it is ready for them was expected to take, over "
    "what it took.",
    explicit_bucket_boundaries_advisory=_RATIOS,
)
concurrency = _meter.create_gauge(
    "sllm.instance.concurrency",
    unit="{request}",
    description="Requests that the instance tuned last works on at once, by the target of its "
    "deployment for the time between tokens.",
)
time_per_token = _meter.create_histogram(
    "sllm.time_per_token",
    unit="s",
    description="Between two tokens of a request, on average over the request.",
    explicit_bucket_boundaries_advisory=SECONDS,
)
instance_starts = _meter.create_counter(
    "sllm.instance.starts", unit="{start}", description="Starts that have ended, by outcome."
)

start_time = _meter.create_histogram(
    "sllm.instance.start_time",
    unit="s",
    description="From the decision to a ready instance.",
    explicit_bucket_boundaries_advisory=SECONDS,
)
estimate_error = _meter.create_histogram(
    "sllm.instance.start_estimate_error",
    unit="s",
    description="How far off the estimate of a start was, either way.",
    explicit_bucket_boundaries_advisory=SECONDS,
)


_Observer = Callable[[CallbackOptions], Iterable[Observation]]
_OF_TENANTS: Final[
    tuple[tuple[str, str, str, str, Callable[[Usage], Mapping[str, float]]], ...]
] = (
    (
        "requests",
        "{request}",
        "Requests that a tenant has made.",
        "",
        lambda usage: {"": usage.requests},
    ),
    (
        "tokens",
        "{token}",
        "Tokens computed for a tenant: of prompts, and generated.",
        "kind",
        lambda usage: {"prompt": usage.prompt_tokens, "generated": usage.generated_tokens},
    ),
    (
        "device_time",
        "s",
        "Devices that a tenant's instances had, times how long.",
        "",
        lambda usage: {"": usage.device_seconds},
    ),
    (
        "byte_time",
        "By.s",
        "Bytes of a tenant's checkpoints times seconds, by tier.",
        "tier",
        lambda usage: dict(usage.byte_seconds),
    ),
)
"""What is told of each tenant: name, unit, words, the label of its values, and the values."""


def record_start(record: StartRecord) -> None:
    """Takes in a start that has succeeded."""
    start_time.record(record.seconds)
    if record.estimate is not None:
        estimate_error.record(abs(record.estimate - record.seconds))


@dataclass(frozen=True, eq=False, slots=True)
class Observed:
    """What is looked at of a control plane whenever metrics are read, in another thread."""

    waiting: Callable[[], Mapping[str, int]]
    """How many requests wait, by deployment; none that nobody waits for."""
    usage: Mapping[str, Usage]
    """What tenants have used, by name."""


class _Latest:
    """The control plane of this process: of several on etcd, one for each time that it leads."""

    def __init__(self) -> None:
        self.observed: Observed | None = None


_latest: Final = _Latest()


def observe(observed: Observed) -> None:
    """Has this told from now on, in the place of what was before."""
    _latest.observed = observed


def observe_no_more(observed: Observed) -> None:
    """Has it told no more; another one stays."""
    if _latest.observed is observed:
        _latest.observed = None


def _depth(_: CallbackOptions) -> Iterable[Observation]:
    waiting = _waiting()
    return [] if waiting is None else [Observation(sum(waiting.values()))]


def _depths(_: CallbackOptions) -> Iterable[Observation]:
    waiting = _waiting() or {}
    return [Observation(count, {"deployment": name}) for name, count in waiting.items()]


def _waiting() -> Mapping[str, int] | None:
    return observed.waiting() if (observed := _latest.observed) else None


def _observer(tell: Callable[[Usage], Mapping[str, float]], label: str) -> _Observer:
    def of_tenants(_: CallbackOptions) -> Iterable[Observation]:
        observed = _latest.observed
        for tenant, its in tuple(observed.usage.items()) if observed else ():
            for key, value in tell(its).items():
                labels = {"tenant": tenant, label: key} if label else {"tenant": tenant}
                yield Observation(value, labels)

    return of_tenants


_meter.create_observable_gauge(
    "sllm.queue.depth", [_depth], unit="{request}", description="Requests that wait."
)
_meter.create_observable_gauge(
    "sllm.queue.waiting",
    [_depths],
    unit="{request}",
    description="Requests that wait, by deployment.",
)
for _name, _unit, _description, _label, _tell in _OF_TENANTS:
    _meter.create_observable_counter(
        f"sllm.tenant.{_name}", [_observer(_tell, _label)], unit=_unit, description=_description
    )
