"""The zygote itself, in this process."""

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from sllm.node.worker.backends.transformers_backend import TransformersBackend
from sllm.node.worker.messages import (
    MAX_PACKET_BYTES,
    Describe,
    Failed,
    Fork,
    Message,
    Probe,
    Ready,
    from_packet,
    to_packet,
)
from sllm.node.worker.zygote import Zygote

CALLS: list[Message] = [Fork(1, "i", "/s", {}), Describe(1, "/", None, []), Probe(1, {})]


@pytest.fixture
def signals() -> Iterator[None]:
    """Gives the process its handlers back."""
    handler, wakeup = signal.getsignal(signal.SIGCHLD), signal.set_wakeup_fd(-1)
    yield
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGCHLD, handler)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("call", CALLS)
def test_it_outlives_a_system_without_processes(
    call: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    agent, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with agent, end:
        agent.send(to_packet(call))
        agent.shutdown(socket.SHUT_WR)
        Zygote(end, -1, TransformersBackend()).serve()
        assert from_packet(agent.recv(MAX_PACKET_BYTES)) == Ready()
        answer = from_packet(agent.recv(MAX_PACKET_BYTES))
    assert isinstance(answer, Failed)
    assert (answer.call, answer.reason) == (1, "START_FAILED")
    assert "could not fork: Resource temporarily" in answer.message
