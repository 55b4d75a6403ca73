"""How the processes that run a model see each other's tensors: in memory that they share.

Whoever has written tells the others through a socket, and waits to be told: nobody spins, and
the end of one is the end of its sockets. Neither memory nor sockets have a name.
"""

import mmap
import socket
from collections.abc import Mapping
from typing import Final

import torch

from sllm.errors import WorkerDied

PART_BYTES: Final = 1 << 20
"""Of a tensor that are exchanged at once."""
_TURNS: Final = 2
"""Places of each: who has been told of the second by all others knows that they have read the
first."""


def shared_bytes(size: int) -> int:
    """Memory that so many processes share."""
    return _TURNS * size * PART_BYTES


class Exchange:
    """One of the processes. All of them make the same calls, in one order, each in one thread."""

    def __init__(self, index: int, memory_fd: int, peers: Mapping[int, socket.socket]) -> None:
        """Maps the memory.

        Args:
            index: of this process, from 0.
            memory_fd: of `shared_bytes`, the same for all of them.
            peers: sockets to the others, by their index.
        """
        size = len(peers) + 1
        self._index = index
        self._peers = peers
        pages = mmap.mmap(memory_fd, shared_bytes(size))
        memory = torch.frombuffer(pages, dtype=torch.uint8)
        self._turns = memory.view(_TURNS, size, PART_BYTES)
        self._turn = 0

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """What all of them have given, in their order: tensors of one shape and dtype.

        Raises:
            WorkerDied: One has ended.
        """
        given = tensor.contiguous()
        found = [torch.empty_like(given) for _ in range(len(self._peers) + 1)]
        source, targets = _bytes(given), [_bytes(one) for one in found]
        for start in range(0, len(source), PART_BYTES):
            part = slice(start, start + PART_BYTES)
            for target, seen in zip(targets, self._swap(source[part]), strict=True):
                target[part] = seen
        return found

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Makes a tensor the sum of what all of them have given, added in their order.

        It takes memory for a part of it alone, whatever its size and however many they are.

        Raises:
            WorkerDied: One has ended.
        """
        given = tensor.contiguous()
        target = _bytes(given)
        for start in range(0, len(target), PART_BYTES):
            part = target[start : start + PART_BYTES]
            first, *others = self._swap(part).view(given.dtype)
            total = first.float()
            for other in others:
                total = total + other
            part.view(given.dtype).copy_(total)
        return tensor if given is tensor else tensor.copy_(given)

    def _swap(self, part: torch.Tensor) -> torch.Tensor:
        turn = self._turns[self._turn]
        self._turn = (self._turn + 1) % _TURNS
        turn[self._index, : len(part)] = part
        try:
            for peer in self._peers.values():
                peer.send(b"1")
            told = [peer.recv(1) for peer in self._peers.values()]
        except OSError as error:
            raise WorkerDied(f"a process that runs the model has ended: {error}") from error
        if not all(told):
            raise WorkerDied("a process that runs the model has ended")
        return turn[:, : len(part)]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)
