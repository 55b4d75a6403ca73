"""The processes that run a model together, forked and ended without any model."""

import subprocess
import sys

_MANY = """
import os, resource
from pathlib import Path
from sllm.node.worker.ranks import fork_ranks

def serve(pipe, rank):
    assert sorted(rank.peers) == [one for one in range(32) if one != rank.index]
    for one in rank.peers.values():
        one.send(b"1")
    assert all(one.recv(1) for one in rank.peers.values())
    pipe.send(rank.index)
    try:
        pipe.recv()
    except EOFError:
        return 0

resource.setrlimit(resource.RLIMIT_NOFILE, (1200, 2048))
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1050)]
ranks = fork_ranks(32, serve)
for peer in ranks.group.rank.peers.values():
    peer.send(b"1")
assert [one.recv() for one in ranks.group.others] == list(range(1, 32))
ranks.close(grace=10)
print(sum(not Path(f"/proc/{one.pid}").exists() for one in ranks.processes), "have ended")
"""


def test_many_processes_need_few_descriptors() -> None:
    """The first has more open than select(2) can wait for, and may have twice as many at most."""
    done = subprocess.run(
        [sys.executable, "-c", _MANY], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "31 have ended\n"), done.stderr
