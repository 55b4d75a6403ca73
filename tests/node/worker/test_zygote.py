"""The zygote itself, in this process."""

import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from sllm.errors import SllmError, StartFailed, UnsupportedModel
from sllm.node.worker import zygote
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


def computes_for_ever(*_: object, **options: object) -> None:
    while True:
        pass


def waits_for_ever(*_: object, **options: object) -> None:
    threading.Event().wait()


def takes_all_memory(*_: object, **options: object) -> None:
    taken = []
    while True:
        taken.append(bytearray(16 << 20))


def recurs_for_ever(*arguments: object, **options: object) -> None:
    recurs_for_ever(*arguments, **options)


def is_killed(*_: object, **options: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raises(*_: object, **options: object) -> None:
    raise ZeroDivisionError("division by zero")


@pytest.fixture
def frozen() -> Iterator[None]:
    """As in a zygote's own process: no collection in a fork ends what others have left here.

    Such as objects of gRPC, whose end waits for threads that a fork does not have.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("signals", "frozen")
@pytest.mark.parametrize(
    ("trial", "reason", "says"),
    [
        (computes_for_ever, "UNSUPPORTED_MODEL", "within 1 s of a processor's time"),
        (waits_for_ever, "START_FAILED", "within 2 s; try again"),
        (takes_all_memory, "UNSUPPORTED_MODEL", "MemoryError"),
        (recurs_for_ever, "UNSUPPORTED_MODEL", "recursion"),
        (is_killed, "UNSUPPORTED_MODEL", "SIGKILL"),
        (raises, "UNSUPPORTED_MODEL", "division by zero"),
    ],
)
def test_a_trial_is_bounded_whatever_the_model_leads_to(
    trial: Callable[..., object], reason: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In time and memory; the zygote stays, and the answer says what it was."""
    monkeypatch.setattr(zygote, "try_model", trial)
    if trial is computes_for_ever:
        monkeypatch.setattr(zygote, "TRIAL_SECONDS", 1)
    monkeypatch.setattr(zygote, "TRIAL_TIMEOUT", 2.0 if trial is waits_for_ever else 60.0)
    monkeypatch.setattr(zygote, "TRIAL_BYTES", 512 << 20)
    agent, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    answers: list[Message] = []

    def ask() -> None:
        agent.send(to_packet(Describe(1, "/", None, [])))
        answers.extend(from_packet(agent.recv(MAX_PACKET_BYTES)) for _ in range(2))
        agent.close()

    asking = threading.Thread(target=ask)
    with agent, end:
        asking.start()
        Zygote(end, -1, TransformersBackend()).serve()
        asking.join()
    ready, failed = answers
    assert ready == Ready()
    assert isinstance(failed, Failed)
    assert failed.reason == reason, failed.message
    assert says in failed.message


@pytest.mark.parametrize(("seconds", "kind"), [(1.0, StartFailed), (16.0, UnsupportedModel)])
def test_who_had_the_processor_decides_what_a_timeout_is(
    seconds: float, kind: type[SllmError]
) -> None:
    """A model that was not given a chance may be tried again; one that took it is refused."""
    assert type(zygote.ended_badly(signal.SIGALRM, seconds)) is kind
