"""One of the other ranks of a model: vLLM's worker, which does as the first rank tells it."""

import os
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.serial_utils import run_method
from vllm.v1.worker.worker_base import WorkerWrapperBase

from sllm.errors import SllmError
from sllm.node.worker.engine.exchange import PeerLost
from sllm.node.worker.engine.group import ALONE, Rank
from sllm.node.worker.engine.interface import Capacity
from sllm.node.worker.engine.vllm.config import VllmModel, engine_config
from sllm.node.worker.engine.vllm.groups import process_group
from sllm.node.worker.engine.vllm.loader import Loading
from sllm.node.worker.engine.vllm.making import NICENESS, making, threads_for
from sllm.node.worker.engine.vllm.prompts import PromptReader
from sllm.node.worker.engine.vllm.ranks import Begin, Call, Filled, executor_of
from sllm.node.worker.engine.vllm.sampler import FollowingSampler


def follow(model: VllmModel, capacity: Capacity, pipe: Connection, rank: Rank) -> None:
    """Runs a rank until the first lets go of the pipe.

    Args:
        model: what is run.
        capacity: of the engine.
        pipe: to the first rank.
        rank: which one this is.

    Raises:
        UnsupportedModel: The weights are not those of the model.
        NoCapacity: There is no memory for its part of the KV cache.
    """
    follower = _Follower(pipe, rank)
    try:
        with making(model) as loading:
            executor = executor_of(ALONE, lambda _: None)
            config = engine_config(model, capacity, FollowingSampler, executor)
            follower.start(config, loading)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        torch.set_num_threads(threads_for(model.weight_bytes, model.ranks))
        follower.run()
    except (EOFError, ConnectionResetError):
        return  # the first rank has let go
    except PeerLost:
        with suppress(EOFError, ConnectionResetError):
            while True:  # the first ends all, and says which has ended by itself
                pipe.recv()


class _Follower:
    def __init__(self, pipe: Connection, rank: Rank) -> None:
        self._pipe = pipe
        self._rank = rank
        self._worker = WorkerWrapperBase(rpc_rank=rank.index)

    def start(self, config: Any, loading: Loading) -> None:
        """Makes the model with its part of the weights, and what belongs to it."""
        with process_group(self._rank):
            self._join(config)
        self._fill()
        current_platform.update_block_size_for_backend(config)
        self._pipe.send(Filled(loading.read_bytes))
        while not isinstance(call := self._pipe.recv(), Begin):
            self._do(call)
        PromptReader(lambda _: None).attach(self._worker.worker.model_runner)

    def run(self) -> None:
        """Computes."""
        while True:
            self._do(self._pipe.recv())

    def _join(self, config: Any) -> None:
        rank = self._rank
        kwargs = {
            "vllm_config": config,
            "local_rank": rank.index,
            "rank": rank.index,
            "distributed_init_method": "",
            "is_driver_worker": False,
            "shared_worker_lock": threading.Lock(),
        }
        self._worker.init_worker(all_kwargs=[kwargs] * rank.size)
        self._worker.init_device()

    def _fill(self) -> None:
        try:
            self._worker.load_model()
        except SllmError as error:
            self._pipe.send(Filled(0, error.code, error.reason, error.message))
            self._pipe.recv()  # until the first rank, which has the same to say, lets go
            raise

    def _do(self, call: Call) -> None:
        value = run_method(self._worker, call.method, call.args, call.kwargs)
        if call.answered:
            self._pipe.send(value)
