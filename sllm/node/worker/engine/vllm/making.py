"""Making an engine of vLLM's, or one rank of it, over weights that are in memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sllm.errors import NoCapacity
from sllm.node.worker.engine.untouched_zeros import UntouchedZeros
from sllm.node.worker.engine.vllm.config import VllmModel
from sllm.node.worker.engine.vllm.loader import Loading, loading

_set_num_threads = torch.set_num_threads
"""vLLM puts a function in its place that does nothing."""


@contextmanager
def making(model: VllmModel, *, making_ready: bool = False) -> Iterator[Loading]:
    """Has what vLLM makes within the context take a model's weights.

    Args:
        model: whose they are.
        making_ready: see `loading`.

    Raises:
        NoCapacity: There is no memory for the KV cache.
    """
    _allow_tiles()
    try:
        with (
            refusing_memory(),
            UntouchedZeros(),
            loading(model.weights, making_ready=making_ready) as loaded,
        ):
            yield loaded
    finally:
        torch.set_num_threads = _set_num_threads


@contextmanager
def refusing_memory() -> Iterator[None]:
    """Says of memory that there is none what callers know.

    Raises:
        NoCapacity: There is no memory for the KV cache.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, OSError) as error:
        raise NoCapacity(f"no memory for the KV cache: {error}") from error
    except ValueError as error:
        # What vLLM says of memory that it cannot have, by measure or by reckoning.
        if "memory" not in str(error):
            raise
        raise NoCapacity(f"no memory for the KV cache: {error}") from error


def _allow_tiles() -> None:
    """Asks the kernel for the tile registers of AMX, which vLLM's attention uses unasked.

    A process, and what it forks, is killed by its first such instruction otherwise; see
    arch_prctl(2), `ARCH_REQ_XCOMP_PERM`. Other libraries ask for themselves, if they are used.

    Raises:
        RuntimeError: The kernel refuses them.
    """
    if torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():
        raise RuntimeError("the kernel refuses the tile registers that vLLM's kernels would use")
