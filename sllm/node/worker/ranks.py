"""The other processes of a model that is run by several: forked by the first, and ended with it.

They are forked before the first has any thread. The kernel kills them when it ends, however that
ends; it is told of theirs by a descriptor.
"""

import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from socket import SHUT_RDWR, socketpair
from socket import socket as Socket
from typing import Final

import torch

from sllm.errors import SllmError, WorkerDied, make_error
from sllm.node.worker.backends.interface import Backend
from sllm.node.worker.engine.exchange import shared_bytes
from sllm.node.worker.engine.group import ALONE, Group, Rank
from sllm.node.worker.engine.interface import Capacity
from sllm.node.worker.making_ready import (
    CANNOT_MAKE,
    Making,
    give_way,
    join_parts,
    make_part,
    write_part,
)
from sllm.node.worker.model.description import load_architecture
from sllm.node.worker.model.held_weights import PooledWeights, hold
from sllm.node.worker.model.module import ModelFiles
from sllm.node.worker.model.refusing import refusing
from sllm.process import die_with_parent

END_SECONDS: Final = 2.0
"""What ranks that are let go of may take to end, all together, before they are killed."""


@dataclass(frozen=True, slots=True)
class Attach:
    """First rank -> another: the weights, of which it takes its part."""

    directory: Path
    """Of the model's small files, as they were prepared last."""
    weights: PooledWeights
    capacity: Capacity


@dataclass(frozen=True, slots=True)
class Made:
    """Another rank -> first: it has written what it reads."""


@dataclass(frozen=True, slots=True)
class NotMade:
    """Another rank -> first: why it has not."""

    code: int
    """Of the error."""
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Process:
    """Another rank, as the first has it."""

    index: int
    pid: int
    ended: int
    """A descriptor that can be read from once it has ended; see pidfd_open(2)."""
    pipe: Connection


class Ranks:
    """All ranks of a model but the first, which is this process. Belongs to the main thread."""

    def __init__(self, group: Group = ALONE, processes: tuple[Process, ...] = ()) -> None:
        self.group = group
        self.processes = processes
        self._alive = {one.pid for one in processes}

    def prepare(self, directory: Path) -> None:
        """Has them import what they can before the weights are there. May be asked for again."""
        self._send(directory)

    def attach(self, directory: Path, weights: PooledWeights, capacity: Capacity) -> None:
        """Gives them the weights, of which each takes its part as the engine starts."""
        self._send(Attach(directory, weights, capacity))

    def make(self, making: Making) -> None:
        """Has each of them write its part as its engine reads it."""
        self._send(making)

    def await_made(self) -> None:
        """Returns once all of them have.

        Raises:
            SllmError: Why one of them has not.
        """
        for one in self.processes:
            try:
                answer = one.pipe.recv()
            except (EOFError, OSError) as error:
                raise WorkerDied(f"rank {one.index}, which was to make weights, ended") from error
            if isinstance(answer, NotMade):
                raise make_error(answer.code, answer.reason, answer.message)

    def end_of(self, process: Process) -> WorkerDied:
        """How a rank has ended, whose descriptor says that it has."""
        _, status = os.waitpid(process.pid, 0)
        self._alive.discard(process.pid)
        how = f"ended with exit status {os.waitstatus_to_exitcode(status)}"
        if os.WIFSIGNALED(status):
            how = f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
        size = self.group.rank.size
        return WorkerDied(
            f"rank {process.index} of the {size} that run the model (process {process.pid}) {how}"
        )

    def close(self, grace: float) -> None:
        """Ends them, and returns when they are gone.

        Args:
            grace: seconds that they may take to end by themselves.
        """
        for one in self.processes:
            _let_go(one.pipe)
        left = [one for one in self.processes if one.pid in self._alive]
        for one in _after(left, grace):
            signal.pidfd_send_signal(one.ended, signal.SIGKILL)
        for one in left:
            os.waitpid(one.pid, 0)
        self._alive.clear()

    def _send(self, message: object) -> None:
        for one in self.processes:
            try:
                one.pipe.send(message)
            except OSError as error:
                raise WorkerDied(
                    f"rank {one.index} of the {self.group.rank.size} that were to run the model "
                    f"has ended: {error}"
                ) from error


def fork_ranks(count: int, serve: Callable[[Connection, Rank], int]) -> Ranks:
    """Forks all ranks of a model but this process, which must have no thread beside this one.

    Args:
        count: of all of them.
        serve: what each of the others does; it gives the exit status.

    Raises:
        OSError: The system has no process, memory or descriptor for one.
    """
    if count == 1:
        return Ranks()
    _allow_descriptors()
    store_fd, memory_fd = os.memfd_create("sllm-ranks"), os.memfd_create("sllm-exchange")
    os.ftruncate(memory_fd, shared_bytes(count))
    first, *others = (Rank(index, count, store_fd, memory_fd, {}) for index in range(count))
    _connect(first, others)
    processes: list[Process] = []
    while others:
        rank = others.pop(0)
        _connect(rank, others)
        sockets = [socket for one in (first, *others) for socket in one.peers.values()]
        pipes = [one.pipe for one in processes]
        processes.append(_fork(rank, (*sockets, *pipes), serve))
        for socket in rank.peers.values():
            socket.close()
    return Ranks(Group(first, tuple(one.pipe for one in processes)), tuple(processes))


def _allow_descriptors() -> None:
    """Lets this process, and those that it forks, have as many as the system gives it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _connect(rank: Rank, later: Sequence[Rank]) -> None:
    """Pairs of sockets with those that are forked later; a rank's are closed once it is forked."""
    for other in later:
        rank.peers[other.index], other.peers[rank.index] = socketpair()


def _fork(
    rank: Rank,
    inherited: Sequence[Connection | Socket],
    serve: Callable[[Connection, Rank], int],
) -> Process:
    ours, theirs = Pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return Process(rank.index, pid, os.pidfd_open(pid), ours)
    status = 1
    try:
        die_with_parent(parent)
        for one in (ours, *inherited):
            one.close()  # or others would not see whose it is close it
        status = serve(theirs, rank)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _let_go(pipe: Connection) -> None:
    """Ends a pipe for all who have it: a thread of this process may be waiting for an answer."""
    with suppress(OSError), Socket(fileno=os.dup(pipe.fileno())) as socket:
        socket.shutdown(SHUT_RDWR)
    pipe.close()


def _after(processes: Sequence[Process], grace: float) -> list[Process]:
    """Those that have not ended by themselves after so many seconds, which all have together."""
    deadline, poll = time.monotonic() + grace, select.poll()
    left = {one.ended: one for one in processes}
    for descriptor in left:
        poll.register(descriptor, select.POLLIN)
    while left:
        ended = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ended:
            break
        for descriptor, _ in ended:
            poll.unregister(descriptor)
            del left[descriptor]
    return list(left.values())


def make_ready(
    backend: Backend, files: ModelFiles, pool_fd: int, making: Making, ranks: Ranks
) -> None:
    """Writes a model's weights as its engine reads them, each rank its part; blocks.

    Args:
        backend: of the engine.
        files: the model's small ones.
        pool_fd: the pool's memfd.
        making: what is made.
        ranks: all that run the model.

    Raises:
        UnsupportedModel: The weights are not those of the model, or are not kept in this way.
        NoCapacity: The disk is full.
        WorkerDied: Another rank has ended.
    """
    ranks.make(making)
    make_part(backend, files, pool_fd, making, ranks.group)
    if ranks.processes:
        ranks.await_made()
        join_parts(making)


def serve_rank(backend: Backend, pool_fd: int, threads: int, pipe: Connection, rank: Rank) -> int:
    """What each rank but the first does, until the first lets go of its pipe.

    Args:
        backend: of the engine.
        pool_fd: the pool's memfd.
        threads: that compute in the process.
        pipe: to the first.
        rank: which one this is.
    """
    torch.set_num_threads(max(1, threads // rank.size))
    try:
        order = _await_weights(backend, pipe)
    except (EOFError, OSError):
        return 0  # no weights were ever wanted
    if isinstance(order, Making):
        _serve_making(backend, pool_fd, order, pipe, rank)
        return 0
    config = load_architecture(order.directory, backend.check).config
    held = hold(pool_fd, order.weights, rank.index)
    backend.follow(order.directory, config, held.given, order.capacity, pipe, rank)
    return 0


def _serve_making(
    backend: Backend, pool_fd: int, making: Making, pipe: Connection, rank: Rank
) -> None:
    with suppress(EOFError, OSError):
        pipe.send(_make(backend, pool_fd, making, rank))
        pipe.recv()  # one that ends by itself would be taken for one that has failed


def _make(backend: Backend, pool_fd: int, making: Making, rank: Rank) -> Made | NotMade:
    try:
        if making.gives_way:
            give_way()
        config = load_architecture(making.model, backend.check).config
        held = hold(pool_fd, making.weights)
        with refusing(CANNOT_MAKE):
            ready = backend.make_ready_part(making.model, config, held.tensors, rank)
        write_part(ready, making, rank)
    except SllmError as error:
        return NotMade(error.code, error.reason, error.message)
    return Made()


def _await_weights(backend: Backend, pipe: Connection) -> Attach | Making:
    """The weights; what their model is made of is imported meanwhile.

    What was prepared may be prepared again from elsewhere, and be gone by now.
    """
    while not isinstance(order := pipe.recv(), Attach | Making):
        with suppress(SllmError, OSError):
            load_architecture(order, backend.check)
    return order
