"""One of the other ranks of a model: vLLM's worker, which does as the first rank tells it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing.connection import Connection
from socket import SHUT_RDWR
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.serial_utils import run_method
from vllm.v1.worker.worker_base import WorkerWrapperBase

from sllm.errors import SllmError, WorkerDied
from sllm.node.worker.engine.group import ALONE, Rank
from sllm.node.worker.engine.interface import Capacity
from sllm.node.worker.engine.niceness import stand_back
from sllm.node.worker.engine.threads import threads_for
from sllm.node.worker.engine.vllm.config import VllmModel, engine_config
from sllm.node.worker.engine.vllm.groups import process_group
from sllm.node.worker.engine.vllm.loader import Loading, MadeReady
from sllm.node.worker.engine.vllm.making import making, refusing_memory
from sllm.node.worker.engine.vllm.prompts import PromptReader
from sllm.node.worker.engine.vllm.ranks import (
    Begin,
    Call,
    Failed,
    Filled,
    executor_of,
    receive,
    send,
)
from sllm.node.worker.engine.vllm.sampler import FollowingSampler
from sllm.node.worker.ready_made.contents import ReadyMade

Refusing = Callable[[], AbstractContextManager[None]]
"""Turns what a library raises within into an error of ours."""


def follow(
    model: VllmModel, capacity: Capacity, pipe: Connection, rank: Rank, refusing: Refusing
) -> None:
    """Runs a rank until the first lets go of the pipe, which is told why this one cannot start.

    Args:
        model: what is run.
        capacity: of the engine.
        pipe: to the first rank.
        rank: which one this is.
        refusing: of the model, as the first rank refuses it.
    """
    follower = Follower(pipe, rank, refusing)
    try:
        with making(model) as loading:
            executor = executor_of(ALONE, lambda _: None)
            config = engine_config(model, capacity, FollowingSampler, executor)
            follower.start(config, loading)
        stand_back()
        torch.set_num_threads(threads_for(model.weight_bytes, model.ranks))
        follower.run()
    except (WorkerDied, Told):
        with suppress(EOFError, OSError):
            while True:  # the first ends all, and says which has ended by itself
                pipe.recv()


def make_ready_part(model: VllmModel, capacity: Capacity, rank: Rank) -> ReadyMade:
    """What vLLM has made of a rank's part of the weights before it packs them.

    Args:
        model: all of whose weights are given.
        capacity: of the engine, which is not started.
        rank: which one this is.

    Raises:
        UnsupportedModel: As `make_ready` in `ready_made.py`.
    """
    worker = WorkerWrapperBase(rpc_rank=rank.index)
    with making(model, making_ready=True):
        config = engine_config(
            model, capacity, FollowingSampler, executor_of(ALONE, lambda _: None)
        )
        with process_group(rank):
            _join(worker, config, rank)
        try:
            worker.load_model()
        except MadeReady as made:
            return made.ready
    raise RuntimeError("vLLM has made its model without filling it with weights")


def _join(worker: WorkerWrapperBase, config: Any, rank: Rank) -> None:
    """Has a rank's worker find the others."""
    kwargs = {
        "vllm_config": config,
        "local_rank": rank.index,
        "rank": rank.index,
        "distributed_init_method": "",
        "is_driver_worker": False,
        "shared_worker_lock": threading.Lock(),
    }
    worker.init_worker(all_kwargs=[kwargs] * rank.size)
    worker.init_device()


class Told(Exception):
    """The first rank has been told why this one cannot start."""


class Follower:
    """Has vLLM's worker do what the first rank says."""

    def __init__(self, pipe: Connection, rank: Rank, refusing: Refusing) -> None:
        self._refusing = refusing
        self._pipe = pipe
        self._rank = rank
        self._worker = WorkerWrapperBase(rpc_rank=rank.index)

    def start(self, config: Any, loading: Loading) -> None:
        """Makes the model with its part of the weights, and what belongs to it."""
        with process_group(self._rank):
            _join(self._worker, config, self._rank)
        with self.telling():
            self._worker.load_model()
        current_platform.update_block_size_for_backend(config)
        send(self._pipe, Filled(loading.read_bytes))
        while not isinstance(call := receive(self._pipe), Begin):
            with self.telling():
                self._do(call)
        PromptReader(lambda _: None).attach(self._worker.worker.model_runner)

    def run(self) -> None:
        """Computes."""
        while True:
            self._do(receive(self._pipe))

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tells the first rank, in the words that it would use itself, what goes wrong within.

        The others, which may be waiting for this one, wait no longer.
        """
        try:
            with self._refusing(), refusing_memory():
                yield
        except WorkerDied:
            raise
        except SllmError as error:
            send(self._pipe, Failed(error.code, error.reason, error.message))
            for peer in self._rank.peers.values():
                with suppress(OSError):
                    peer.shutdown(SHUT_RDWR)
            raise Told from error

    def _do(self, call: Call) -> None:
        value = run_method(self._worker, call.method, call.args, call.kwargs)
        if call.answered:
            send(self._pipe, value)
