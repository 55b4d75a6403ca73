"""The other processes of a model that is run by several: forked by the first, and ended with it.

They are forked before the first has any thread. The kernel kills them when it ends, however that
ends; it is told of theirs by a descriptor.
"""

import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socket as Socket
from socket import socketpair
from typing import Final

import torch

from sllm.errors import WorkerDied
from sllm.node.worker.backends.interface import Backend
from sllm.node.worker.engine.exchange import shared_bytes
from sllm.node.worker.engine.group import ALONE, Group, Rank
from sllm.node.worker.engine.interface import Capacity
from sllm.node.worker.model.description import load_architecture
from sllm.node.worker.model.held_weights import PooledWeights, hold
from sllm.process import die_with_parent

END_SECONDS: Final = 2.0
"""What a rank that is let go of may take to end before it is killed."""


@dataclass(frozen=True, slots=True)
class Attach:
    """First rank -> another: the weights, of which it takes its part."""

    weights: PooledWeights
    capacity: Capacity


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
        """Has them load what they can before the weights are there."""
        self._send(directory)

    def attach(self, weights: PooledWeights, capacity: Capacity) -> None:
        """Gives them the weights, of which each takes its part as the engine starts."""
        self._send(Attach(weights, capacity))

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
            grace: seconds that each may take to end by itself.
        """
        for one in self.processes:
            one.pipe.close()
        for one in self.processes:
            if one.pid in self._alive:
                _end(one, grace)
                self._alive.discard(one.pid)

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
    first, *others = _ranks(count)
    processes: list[Process] = []
    for rank in others:
        unused = [one.peers for one in (first, *others) if one is not rank]
        sockets = [socket for peers in unused for socket in peers.values()]
        pipes = [one.pipe for one in processes]
        processes.append(_fork(rank, (*sockets, *pipes), serve))
    for one in others:
        for socket in one.peers.values():
            socket.close()
    return Ranks(Group(first, tuple(one.pipe for one in processes)), tuple(processes))


def _ranks(count: int) -> list[Rank]:
    """All of them, with what they have in common and between any two."""
    store_fd, memory_fd = os.memfd_create("sllm-ranks"), os.memfd_create("sllm-exchange")
    os.ftruncate(memory_fd, shared_bytes(count))
    peers: list[dict[int, Socket]] = [{} for _ in range(count)]
    for one, other in combinations(range(count), 2):
        peers[one][other], peers[other][one] = socketpair()
    return [Rank(index, count, store_fd, memory_fd, peers[index]) for index in range(count)]


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


def _end(process: Process, grace: float) -> None:
    ended, _, _ = select.select([process.ended], [], [], grace)
    if not ended:
        signal.pidfd_send_signal(process.ended, signal.SIGKILL)
    os.waitpid(process.pid, 0)


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
        directory: Path = pipe.recv()
        architecture = load_architecture(directory, backend.check)
        order: Attach = pipe.recv()
    except EOFError:
        return 0  # no weights were ever wanted
    held = hold(pool_fd, order.weights)
    backend.follow(directory, architecture.config, held.given, order.capacity, pipe, rank)
    return 0
