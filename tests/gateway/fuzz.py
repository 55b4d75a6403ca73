"""Whatever the description of its routes allows, sent to a gateway of a real cluster.

    PYTHONPATH=examples python -m tests.gateway.fuzz [OPTIONS OF schemathesis run]

No answer may be a server's error. schemathesis is installed by `make fuzz-http`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from bench.gateway import MODEL, gateway
from bench.local_cluster import MIB, local_cluster

SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"


def main() -> int:
    """Runs it, and gives its status."""
    with (
        tempfile.TemporaryDirectory(prefix="sllm-fuzz-") as directory,
        local_cluster(Path(directory), dram_bytes=256 * MIB, kv_bytes=256 * MIB) as cluster,
        gateway(cluster.address) as door,
    ):
        cluster.wait_for_engines(1)
        cluster.client.deploy("tiny", MODEL)
        url = f"http://{door.host}:{door.port}/openapi.json"
        checks = ("--checks", "not_a_server_error", "--phases", "fuzzing")
        return subprocess.run([SCHEMATHESIS, "run", url, *checks, *sys.argv[1:]]).returncode


if __name__ == "__main__":
    sys.exit(main())
