"""What the control plane measures, on the global meter."""

from collections.abc import Callable, Iterable

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from sllm.buckets import SECONDS
from sllm.control.types.receipts import StartRecord

_meter = metrics.get_meter("sllm")
_RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.33, 2.0, 4.0, 10.0)
"""Bounds of buckets of an estimate over what it came to."""

requests = _meter.create_counter(
    "sllm.requests", unit="{request}", description="Requests that have ended, by outcome."
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


def record_start(record: StartRecord) -> None:
    """Takes in a start that has succeeded."""
    start_time.record(record.seconds)
    if record.estimate is not None:
        estimate_error.record(abs(record.estimate - record.seconds))


def observe_queue(depth: Callable[[], int]) -> None:
    """Has `depth` asked for the number of waiting requests whenever metrics are read."""

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(depth())]

    _meter.create_observable_gauge(
        "sllm.queue.depth", [observe], unit="{request}", description="Requests that wait."
    )
