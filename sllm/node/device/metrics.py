"""What is measured of KV caches that share a node's memory, on the global meter."""

from collections import Counter
from collections.abc import Callable, Iterable

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from sllm.node.device.kv_shares import CacheSizes

_meter = metrics.get_meter("sllm")

Caches = Callable[[], Iterable[tuple[str, CacheSizes]]]
"""By deployment, whose instances on the node may be several."""


def observe(caches: Caches) -> None:
    """Registers what is asked whenever metrics are read."""

    def summed(size: Callable[[CacheSizes], int]) -> Callable[..., Iterable[Observation]]:
        def ask(_: CallbackOptions) -> Iterable[Observation]:
            sums = Counter[str]()
            for deployment, sizes in caches():
                sums[deployment] += size(sizes)
            return [Observation(total, {"deployment": name}) for name, total in sums.items()]

        return ask

    for name, callback, description in (
        ("sllm.kv.granted", summed(lambda sizes: sizes.granted), "What caches were started with."),
        ("sllm.kv.share", summed(lambda sizes: sizes.share), "What they may take now."),
        ("sllm.kv.used", summed(lambda sizes: sizes.used), "Of that, what requests have."),
    ):
        _meter.create_observable_gauge(name, [callback], unit="By", description=description)
