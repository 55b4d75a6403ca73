"""What instances of the simulated models take of their servers, and how many there are of each."""

import statistics
from collections.abc import Iterable

from bench.simulation.hardware import Model, Server
from sllm.control.cluster.needs import Checkpoint, Need
from sllm.control.cluster.specs import ScalingPolicy


def need_of(name: str, model: Model, server: Server, concurrency: int) -> Need:
    """What an instance takes of a server: whole GPUs, what its weights leave being its KV cache."""
    kv_bytes = model.gpus * server.gpu_bytes
    checkpoint = Checkpoint(f"file:///{name}", model.size_bytes, name)
    return Need(name, checkpoint, kv_bytes, kv_bytes, concurrency)


def scaling_of(model: Model, server: Server, keep_alive: float | None = None) -> ScalingPolicy:
    """From nothing to all GPUs; idle instances stay for as long as loading takes (section 7.4)."""
    loading = model.size_bytes / server.ssd_bytes_per_second + server.init_seconds
    kept = loading if keep_alive is None else keep_alive
    return ScalingPolicy(min_replicas=0, max_replicas=10**6, keep_alive=kept)


def seconds_per_token(models: Iterable[Model], link: float | None = None) -> float:
    """a, as it would be learned from migrations of all models alike.

    `link`: bytes per second at which their caches may be sent instead. None: they may not.
    """
    return statistics.fmean(
        min(one.prefill_seconds_per_token, one.kv_bytes_per_token / link)
        if link
        else one.prefill_seconds_per_token
        for one in models
    )
