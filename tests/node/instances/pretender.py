"""A zygote that imports nothing and can be told to fail.

Run as `pretender.py PLAN ENGINE AGENT_FD POOL_FD PID`. PLAN is a file of behaviours, one a line, or
a directory of such files, one for each engine. Each process takes the first one off, but leaves
the last.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sllm.errors import UnsupportedModel
from sllm.node.worker.messages import (
    MAX_PACKET_BYTES,
    Describe,
    Described,
    Failed,
    Fork,
    Forked,
    Message,
    ModelDescription,
    Ready,
    Serving,
    from_packet,
    to_packet,
)
from sllm.process import die_with_parent

MODEL = ModelDescription("Pretended", 1, 1, "float32", vocabulary=100)
SLOW_SECONDS = 1.0


class Pretender:
    """Says what a zygote would say, or not all of it."""

    def __init__(self, agent: socket.socket) -> None:
        self._agent = agent

    def serve(self, answer: Callable[[int], None], *, after: float = 0.0) -> None:
        """Gets ready `after` so many seconds, and answers calls."""
        time.sleep(after)
        self.send(Ready())
        while packet := self._agent.recv(MAX_PACKET_BYTES):
            message = from_packet(packet)
            assert isinstance(message, Describe | Fork)
            answer(message.call)

    def send(self, message: Message) -> None:
        """Says something to the agent."""
        self._agent.send(to_packet(message))

    def describe(self, call: int) -> None:
        """Answers at once."""
        self.send(Described(call, MODEL, "features", ""))

    def refuse(self, call: int) -> None:
        """Answers that the engine cannot run the model."""
        code, reason = int(UnsupportedModel.code), UnsupportedModel.reason
        self.send(Failed(call, code, reason, "it is odd", {}))

    def fork(self, call: int) -> None:
        """Tells of a worker, which serves."""
        self.send(Forked(call, _fork(lambda: self.send(Serving(os.getpid())))))

    def fork_and_die(self, call: int) -> None:
        """Tells of a worker that never serves."""
        self.send(Forked(call, _fork(lambda: None)))
        _die()

    def tell_late(self, call: int) -> None:
        """Tells of a worker when that has told that it serves."""
        heard, told = os.pipe()

        def serve() -> None:
            self.send(Serving(os.getpid()))
            os.write(told, b".")

        pid = _fork(serve)
        os.read(heard, 1)
        self.send(Forked(call, pid))


def _die(_: int = 0) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fork(work: Callable[[], None]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    die_with_parent(parent)
    work()
    while True:
        signal.pause()


def run(plan: Path, agent: socket.socket) -> None:
    """Behaves as its line of the plan says."""
    behaviour, *rest = plan.read_text().splitlines()
    if rest:
        plan.write_text("\n".join(rest))
    one = Pretender(agent)
    behaviours: Mapping[str, Callable[[], object]] = {
        "dies before it is ready": _die,
        "is never ready": signal.pause,
        "is slow": lambda: one.serve(one.describe, after=SLOW_SECONDS),
        "is mute": lambda: one.serve(lambda _: None),
        "dies when it is asked": lambda: one.serve(_die),
        "describes": lambda: one.serve(one.describe),
        "refuses": lambda: one.serve(one.refuse),
        "forks": lambda: one.serve(one.fork),
        "forks and dies": lambda: one.serve(one.fork_and_die),
        "tells late of a fork": lambda: one.serve(one.tell_late),
    }
    behaviours[behaviour]()


if __name__ == "__main__":
    given = Path(sys.argv[1])
    plan = given / sys.argv[2] if given.is_dir() else given
    run(plan, socket.socket(fileno=int(sys.argv[3])))
