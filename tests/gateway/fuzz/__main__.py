"""Runs all of it against a gateway of a real cluster.

    PYTHONPATH=examples python -m tests.gateway.fuzz SCHEMATHESIS [OPTIONS OF schemathesis run]

No answer may be a server's error but for sllm's own reasons, and nothing may be left afterwards.
schemathesis is a program of its own environment, which `make fuzz-http` makes: it brings a plug-in
for pytest, which ours is not to load.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from bench.gateway import MODEL as SOURCE
from bench.gateway import Door, gateway
from bench.local_cluster import MIB, LocalCluster, local_cluster
from tests.gateway.fuzz.description import MODEL, described
from tests.gateway.fuzz.hostile import SECONDS, Outcome, large_bodies, random_bytes, slow_callers
from tests.gateway.fuzz.leaks import holding, leaked

RANDOM = 4000
"""Requests of random bytes."""
SLOW = 500
"""Callers at once who dawdle."""

HOSTILE: Mapping[str, Callable[[str, int], Awaitable[Outcome]]] = {
    "random bytes": lambda host, port: random_bytes(host, port, RANDOM, int(time.time())),
    "bodies of 100 MB": large_bodies,
    "slow callers": lambda host, port: slow_callers(host, port, SLOW),
}


def main(schemathesis: str, options: Sequence[str]) -> int:
    """Runs it; 0 if all is well."""
    with (
        tempfile.TemporaryDirectory(prefix="sllm-fuzz-") as directory,
        local_cluster(Path(directory), dram_bytes=256 * MIB, kv_bytes=256 * MIB) as cluster,
        gateway(cluster.address) as door,
    ):
        cluster.wait_for_engines(1)
        cluster.client.deploy(MODEL, SOURCE)
        return _run(cluster, door, Path(directory), [schemathesis, *options])


def _run(cluster: LocalCluster, door: Door, directory: Path, command: Sequence[str]) -> int:
    url = f"http://{door.host}:{door.port}"
    asyncio.run(random_bytes(door.host, door.port, 200, 0))  # what is made once is made by now
    before = holding(door.process, url, cluster.client)
    problems = [*_describe(url, directory, command)]
    for what, send in HOSTILE.items():
        outcome = asyncio.run(_whole(send, door))
        print(f"{what}: {outcome}", flush=True)
        problems += outcome.wrong
        if left := leaked(before, door.process, url, cluster.client):
            problems.append(f"after {what}: {left}")
    print(before, holding(door.process, url, cluster.client), sep="\n")
    print(*problems, sep="\n")
    return bool(problems)


async def _whole(send: Callable[[str, int], Awaitable[Outcome]], door: Door) -> Outcome:
    return await send(door.host, door.port)


def _describe(url: str, directory: Path, command: Sequence[str]) -> list[str]:
    """Whatever the description allows."""
    schemathesis, *options = command
    path = directory / "openapi.json"
    path.write_text(json.dumps(described(url)))
    checks = ("--checks", "not_a_server_error", "--continue-on-failure", "--phases", "fuzzing")
    waits = ("--request-timeout", str(SECONDS))  # some texts fill the whole context
    done = subprocess.run([schemathesis, "run", path, "--url", url, *checks, *waits, *options])
    return ["schemathesis has found something, see above"] if done.returncode else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
