"""What the processes that run a model on vLLM tell each other of what goes wrong."""

from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from socket import socket, socketpair

import pytest

from sllm import errors
from sllm.errors import WorkerDied
from sllm.node.worker.engine.group import Group, Rank
from sllm.node.worker.model.refusing import CANNOT_RUN, refusing
from tests.node.worker.engines import needs_vllm

pytestmark = needs_vllm
Ends = tuple[Connection, Connection, socket, socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A pipe and a pair of sockets between two of them; the first one's ends come first."""
    (first, second), (near, far) = Pipe(), socketpair()
    yield first, second, near, far
    for one in (first, second, near, far):
        one.close()


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (MemoryError("so much"), errors.NoCapacity),
        (OSError(12, "cannot allocate"), errors.NoCapacity),
        (ValueError("no available memory for the cache blocks"), errors.NoCapacity),
        (errors.UnsupportedModel("lacks a tensor"), errors.UnsupportedModel),
        (AssertionError(), errors.UnsupportedModel),
        (RuntimeError("shapes do not match"), errors.UnsupportedModel),
    ],
)
def test_what_one_cannot_do_the_first_says_as_its_own(
    ends: Ends, raised: Exception, told: type[errors.SllmError]
) -> None:
    """Also where the first has been waiting for it, and whatever others have answered."""
    from sllm.node.worker.engine.vllm.follower import Follower, Told
    from sllm.node.worker.engine.vllm.ranks import heeding

    first, second, near, far = ends
    follower = Follower(second, Rank(1, 2, peers={0: far}), lambda: refusing(CANNOT_RUN))
    with pytest.raises(Told), follower.telling():
        raise raised
    assert not near.recv(1), "the others wait for it"
    healthy, answers = Pipe()
    answers.send(1)
    with pytest.raises(told), heeding(Group(Rank(0, 3), (healthy, first))):
        raise WorkerDied("it does not go on")


def test_the_end_of_one_is_neither_a_want_of_memory_nor_the_models_fault(ends: Ends) -> None:
    from sllm.node.worker.engine.vllm.follower import Follower
    from sllm.node.worker.engine.vllm.making import refusing_memory
    from sllm.node.worker.engine.vllm.ranks import receive, send

    first, second, _, far = ends
    follower = Follower(second, Rank(1, 2, peers={0: far}), lambda: refusing(CANNOT_RUN))
    first.close()
    with pytest.raises(WorkerDied), refusing(CANNOT_RUN), refusing_memory():
        receive(second)
    with pytest.raises(WorkerDied), refusing(CANNOT_RUN), refusing_memory():
        send(second, "anything")
    with pytest.raises(WorkerDied), follower.telling():
        receive(second)
