"""What a zygote and its workers tell, in every order in which it can come."""

import itertools
import signal
import subprocess
from collections.abc import Iterator

import pytest

from sllm.node.instances.forked import Exit, ForkedWorker, ForkedWorkers


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One in the place of a worker."""
    with subprocess.Popen(["sleep", "60"]) as found:
        yield found
        found.kill()


def orders() -> list[tuple[str, ...]]:
    """The zygote tells of a worker before its end, and a worker speaks while it is alive."""
    return [
        order
        for order in itertools.permutations(("forked", "serving", "exited"))
        if order.index("exited") > max(order.index("forked"), order.index("serving"))
    ]


@pytest.mark.parametrize("order", orders())
async def test_a_worker_serves_whoever_is_heard_first(
    process: subprocess.Popen[bytes], order: tuple[str, ...]
) -> None:
    workers = ForkedWorkers()
    found: list[ForkedWorker] = []
    tell = {
        "forked": lambda: found.append(workers.forked(process.pid)),
        "serving": lambda: workers.serving(process.pid),
        "exited": lambda: workers.exited(process.pid, signal.SIGTERM),
    }
    for what in order[:-1]:
        tell[what]()
    (worker,) = found
    assert worker.serving.done()
    assert not worker.exited.done()
    tell[order[-1]]()
    assert worker.exited.result() == Exit(signal.SIGTERM)
    assert not workers.processes


async def test_what_one_worker_has_said_early_is_not_said_of_the_next(
    process: subprocess.Popen[bytes],
) -> None:
    workers = ForkedWorkers()
    workers.serving(process.pid)
    workers.forked(process.pid)
    workers.exited(process.pid, 0)
    assert not workers.forked(process.pid).serving.done()


async def test_workers_without_a_zygote_are_orphans(process: subprocess.Popen[bytes]) -> None:
    workers = ForkedWorkers()
    worker = workers.forked(process.pid)
    workers.orphaned()
    assert worker.exited.result() == Exit(signal.SIGKILL, orphaned=True)
    workers.exited(process.pid, 0)
