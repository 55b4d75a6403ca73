"""Processes that run a model see each other's tensors; here they are threads of one."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from socket import socket, socketpair
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sllm.errors import WorkerDied
from sllm.node.worker.engine.exchange import PART_BYTES, Exchange, shared_bytes

TIMEOUT = 30.0


def exchanges(size: int) -> tuple[list[Exchange], list[dict[int, socket]]]:
    memory_fd = os.memfd_create("exchange")
    os.ftruncate(memory_fd, shared_bytes(size))
    peers: list[dict[int, socket]] = [{} for _ in range(size)]
    for one, other in combinations(range(size), 2):
        peers[one][other], peers[other][one] = socketpair()
    found = [Exchange(index, memory_fd, peers[index]) for index in range(size)]
    os.close(memory_fd)
    return found, peers


def of_all(size: int, work: Callable[[int, Exchange], object]) -> list[object]:
    """What each of so many gives for `work`, which is done side by side."""
    found, peers = exchanges(size)
    with ThreadPoolExecutor(size) as pool:
        done = [pool.submit(work, index, one) for index, one in enumerate(found)]
        results = [one.result(TIMEOUT) for one in done]
    for sockets in peers:
        for one in sockets.values():
            one.close()
    return results


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (0, 7), (3, 5), (PART_BYTES // 2 + 3,)])
def test_all_see_what_each_has_given(size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Of no size, and of several parts; again and again, so that places are written anew."""

    def given(index: int, number: int) -> torch.Tensor:
        torch_seed = torch.Generator().manual_seed(10 * number + index)
        return torch.randint(-100, 100, shape, generator=torch_seed).to(dtype)

    def work(index: int, exchange: Exchange) -> bool:
        for number in range(3):
            found = exchange.gather(given(index, number))
            expected = [given(other, number) for other in range(size)]
            if not all(map(torch.equal, found, expected)):
                return False
        return True

    assert all(of_all(size, work))


def test_a_tensor_in_strides_is_given_as_it_is_seen() -> None:
    def work(index: int, exchange: Exchange) -> torch.Tensor:
        rows = torch.arange(12).view(3, 4) + 100 * index
        return torch.stack(exchange.gather(rows[:, 1:3]))

    first, second = of_all(2, work)
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    assert torch.equal(first, second)
    assert first[1].tolist() == [[101, 102], [105, 106], [109, 110]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_made_in_the_order_of_the_processes_without_copies_of_all(
    dtype: torch.dtype,
) -> None:
    """Bit by bit as one after the other; of memory it takes the same for any size and number."""
    shape = (3, PART_BYTES // 2 + 5)

    def given(index: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(index)).to(dtype)

    def work(index: int, exchange: Exchange) -> tuple[torch.Tensor, int]:
        tensor = given(index)
        strided = given(index).t().contiguous().t()
        with Largest() as largest:
            assert exchange.add(tensor) is tensor
        assert torch.equal(exchange.add(strided), tensor)
        return tensor, largest.bytes

    expected = given(0).float() + given(1) + given(2)
    for found in of_all(3, work):
        assert isinstance(found, tuple)
        assert torch.equal(found[0], expected.to(dtype))
        assert found[1] <= 2 * PART_BYTES


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]  # as the base is made
    """The most bytes of what an operation within makes anew."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view and "_." not in str(func):
            self.bytes = max(self.bytes, result.nbytes)
        return result


def test_the_end_of_one_ends_the_wait_of_all() -> None:
    found, peers = exchanges(3)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(found[index].gather, torch.ones(4)) for index in (0, 1)]
        for one in peers[2].values():
            one.close()
        for waits in waiting:
            with pytest.raises(WorkerDied):
                waits.result(TIMEOUT)
    for sockets in peers[:2]:
        for one in sockets.values():
            one.close()
