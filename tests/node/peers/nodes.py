"""Nodes' stores as processes, and what they are told."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import started


@dataclass(frozen=True, slots=True)
class StoreProcess:
    """One of them."""

    node_id: str
    address: str
    directory: Path
    process: subprocess.Popen[str]

    def promote(self, source: str, peers: Sequence["StoreProcess"] = (), **more: Any) -> None:
        """Tells it to bring a checkpoint up; `answer` is to follow.

        Args:
            source: URL.
            peers: whom to have it from.
            more: `digest`, `tier`, `dtype`, and `fellows`: whether the peers are.
        """
        fellows = more.pop("fellows", False)
        self.promote_from(source, [(one, fellows) for one in peers], **more)

    def promote_from(
        self, source: str, peers: Sequence[tuple["StoreProcess", bool]], **more: Any
    ) -> None:
        """As `promote`; of each peer is said whether it is a fellow."""
        named = [(one.node_id, one.address, fellow) for one, fellow in peers]
        self._order({"source": source, "peers": named, **more})

    def evict(self, digest: str) -> None:
        """Has it forget a checkpoint, if it holds it; waits."""
        self._order({"evict": digest})
        assert self.answer() == {"evicted": digest}

    def _order(self, order: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What has come of it; waits."""
        assert self.process.stdout
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        """Ends it, and makes sure that its books were in order and nothing was left."""
        assert self.process.stdin
        self.process.stdin.close()
        assert self.answer() == {"closed": True}
        assert self.process.wait(30) == 0


@contextmanager
def store_process(
    directory: Path, node_id: str, *options: str, prefix: Sequence[str] = ()
) -> Iterator[StoreProcess]:
    """One that listens. `prefix`: a command that runs it."""
    command = (sys.executable, "-m", "tests.node.peers.program", str(directory), node_id)
    with started([*prefix, *command, *options], stdin=subprocess.PIPE) as process:
        assert process.stdout
        address = json.loads(process.stdout.readline())["address"]
        yield StoreProcess(node_id, address, directory, process)
