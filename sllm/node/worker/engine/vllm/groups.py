"""How the ranks of a model find each other and add up: by sockets alone, which end with them.

VLLM's own ways leave segments in /dev/shm behind when a process is killed, and wait for others by
spinning. The processes of a group are on one machine, and known to each other from the start.
"""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Final

import torch
import torch.distributed
from torch._C._distributed_c10d import FileStore, HashStore
from vllm.distributed import parallel_state
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.model_executor.layers import vocab_parallel_embedding
from vllm.platforms import current_platform

from sllm.node.worker.engine.exchange import Exchange
from sllm.node.worker.engine.group import Rank

_TIMEOUT: Final = timedelta(minutes=5)
"""That one rank waits for the others, which is noticed earlier if one has ended."""


class OrderedCommunicator(CpuCommunicator):  # type: ignore[misc]  # untyped library
    """Exchanges tensors by memory that the ranks share, and sums in their order.

    Gloo takes ten times as long, and its sums depend, for more than two ranks, on where in a
    tensor a number is: others in a step would change what comes out.
    """

    exchange: Exchange
    """This process's."""

    def _all_group_ranks_share_shm_group_name(self) -> bool:
        return False  # or it would make segments in /dev/shm

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' tensors, in place."""
        return self.exchange.add(input_)

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """All ranks' tensors side by side."""
        return torch.cat(self.exchange.gather(input_), dim)


@contextmanager
def process_group(rank: Rank) -> Iterator[None]:
    """Joins the ranks of a model; vLLM finds what it asks for within the context.

    Raises:
        RuntimeError: Another rank has ended, or does not come.
    """
    platform, groups = type(current_platform), parallel_state.init_model_parallel_group
    nodes, communicator = parallel_state._node_count, platform.get_device_communicator_cls
    if not torch.distributed.is_initialized() and (rank.size > 1 or current_platform.is_cpu()):
        _join(rank)
    if rank.size > 1:
        parallel_state.init_model_parallel_group = partial(_without_queue, groups)
        parallel_state._node_count = lambda group: 1
        if current_platform.is_cpu():
            # VLLM would have it compiled at the first token, for seconds.
            compiled = vocab_parallel_embedding.get_masked_input_and_mask
            vocab_parallel_embedding.get_masked_input_and_mask = inspect.unwrap(compiled)
            OrderedCommunicator.exchange = Exchange(rank.index, rank.memory_fd, rank.peers)
            name = f"{__name__}.{OrderedCommunicator.__name__}"
            platform.get_device_communicator_cls = classmethod(lambda cls: name)
    try:
        yield
    finally:
        parallel_state.init_model_parallel_group = groups
        parallel_state._node_count = nodes
        platform.get_device_communicator_cls = communicator


def _join(rank: Rank) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store: Any = HashStore()
    if rank.size > 1:
        store = FileStore(f"/proc/self/fd/{rank.store_fd}", rank.size)
    torch.distributed.init_process_group(
        backend=current_platform.dist_backend,
        store=store,
        rank=rank.index,
        world_size=rank.size,
        timeout=_TIMEOUT,
    )


def _without_queue(make: Any, *args: Any, **kwargs: Any) -> Any:
    return make(*args, **{**kwargs, "use_message_queue_broadcaster": False})
