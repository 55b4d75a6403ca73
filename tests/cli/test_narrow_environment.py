"""A cluster where a container's usual defaults are in the way: proxies, little to share or lock."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from make_models import make_model

from tests.processes import started

TIMEOUT = 170
SLLM = (sys.executable, "-m", "sllm.cli.main")
SMALL = ("--dram=64MiB", "--ssd=64MiB", "--kv=16MiB", "--engines=transformers")
NOWHERE = "http://127.0.0.1:1"
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
NARROW = 'mount -t tmpfs -o size=4k narrow /dev/shm && ulimit -l 0 && exec "$@"'
"""Of a shell in a namespace of mounts of its own."""


def narrow(command: Sequence[str]) -> list[str]:
    """A command with a page of /dev/shm, and no memory that it may lock."""
    within = ["unshare", "--mount", "sh", "-c", NARROW, "sh"]
    if not shutil.which("unshare") or subprocess.run([*within, "true"], check=False).returncode:
        pytest.skip("no namespace of mounts can be made here")
    return [*within, *command]


def test_a_cluster_serves_without_shared_or_locked_memory_and_past_proxies(tmp_path: Path) -> None:
    model = make_model("tiny-llama", tmp_path / "model")
    kept = {key: value for key, value in os.environ.items() if "no_proxy" not in key.lower()}
    environment = {**kept, **{name.upper(): NOWHERE for name in PROXIES}}
    environment |= dict.fromkeys(PROXIES, NOWHERE)
    up = narrow([*SLLM, "up", "--no-http", "--port=0", f"--dir={tmp_path / 'files'}", *SMALL])
    with started(up, env=environment) as process:
        assert process.stdout
        address = process.stdout.readline().removeprefix("listening on ").strip()
        deploy = ("deploy", "tiny", str(model), "--kv-cache-tokens=64")
        for command in (deploy, ("generate", "tiny", "a", "--max-tokens=1")):
            done = subprocess.run(
                [*SLLM, *command, f"--control={address}"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0
