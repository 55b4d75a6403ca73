"""`sllm up`, with real servers."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from make_models import make_model

import sllm
from sllm.cli import cluster
from sllm.cli import plan as up_plan
from sllm.cli.plan import Plan
from sllm.cli.supervisor import (
    FIRST_BACKOFF,
    LONGEST_BACKOFF,
    STABLE_SECONDS,
    Command,
    Server,
    next_backoff,
)
from tests.disks import small_disk
from tests.processes import started
from tests.support import wait_until

START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
SMALL = ("--dram=64MiB", "--ssd=64MiB", "--kv=16MiB", "--engines=transformers")


class Up:
    """A running `sllm up`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.address = self.read_line().removeprefix("listening on ")
        self.servers = psutil.Process(self.process.pid).children()
        self.processes = psutil.Process(self.process.pid).children(recursive=True)

    def read_line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def server(self, *words: str) -> psutil.Process:
        """The server that was started with these words among its arguments."""
        return next(one for one in self.servers if set(words) <= set(one.cmdline()))

    def end(self, number: signal.Signals) -> int:
        """Sends a signal; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT)

    def all_gone(self) -> bool:
        """Whether none of the processes that it had started is left."""
        return not any(_alive(one) for one in self.processes)


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _up(
    directory: Path, *arguments: str, **options: Any
) -> AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "sllm.cli.main", "up", "--port=0", f"--dir={directory}"]
    command += [] if "--http" in arguments else ["--no-http"]
    return started([*command, *SMALL, *arguments], **options)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with _up(tmp_path, "--nodes=2") as process:
        yield Up(process)


@pytest.fixture(params=["s#?%41", "d" * 90])
def any_directory(request: pytest.FixtureRequest) -> Iterator[Path]:
    """One whose name means something in URLs, or is too long for the paths of sockets."""
    with tempfile.TemporaryDirectory(prefix=request.param) as directory:
        yield Path(directory)


def test_what_it_keeps_is_its_users_alone(any_directory: Path, tmp_path: Path) -> None:
    """Weights, state, logs, sockets: whatever the mask that it is started with."""
    model = make_model("tiny-llama", tmp_path / "model#1")
    with ExitStack() as stack:
        stack.callback(os.umask, os.umask(0o022))
        running = Up(stack.enter_context(_up(any_directory)))
        client = stack.enter_context(sllm.Client(running.address))
        for name, pack in (("packed", True), ("in-place", False)):
            client.deploy(name, str(model), pack=pack, kv_cache_tokens=64, timeout=120.0)
            client.complete(name, "a", max_tokens=1)
            assert not [path for path in _walk(any_directory) if _mode(path) & 0o077]
        names = {path.name for path in _walk(any_directory)}
        assert {"state.db", "partition-00000.bin", ".sources.json"} <= names
        assert any(name.endswith(".log") for name in names)
        assert running.end(signal.SIGINT) == 0


def _walk(directory: Path) -> list[Path]:
    return [directory, *directory.rglob("*")]


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return 0  # it went meanwhile


@contextmanager
def _sigint_is_ignored() -> Iterator[None]:
    """As in a command that a shell has put into the background, and in all that it starts."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_all_that_it_started_in_the_background_as_well(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with _sigint_is_ignored():
            process = stack.enter_context(_up(tmp_path, "--nodes=2"))
        up = Up(process)
        with sllm.Client(up.address) as client:
            assert [node.node_id for node in client.nodes()] == ["node-1", "node-2"]
        assert len(up.servers) == 3
        assert not any(_ignores(one, signal.SIGINT) for one in up.processes)
        assert up.end(signal.SIGINT) == 0
        assert up.all_gone()


def _ignores(process: psutil.Process, number: signal.Signals) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    mask = next(line for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


def test_nothing_outlives_it_when_it_is_killed(up: Up) -> None:
    up.end(signal.SIGKILL)

    wait_until(up.all_gone, STOP_TIMEOUT)


def test_a_server_that_dies_before_it_is_ready_is_started_again(up: Up) -> None:
    up.server("node", "node-1").kill()
    assert up.read_line().startswith("node-1 ended with status -9")
    assert up.read_line().startswith("2 nodes are ready; ")


def test_it_is_ready_once_its_nodes_can_look_at_models_and_starts_again_what_dies(
    up: Up, tmp_path: Path
) -> None:
    assert up.read_line() == f"2 nodes are ready; files and logs are in {tmp_path}"
    for name in ("node-1", "node-2"):
        log = (tmp_path / "logs" / f"{name}.log").read_text()
        assert "zygote.ready" in [json.loads(line)["event"] for line in log.splitlines()]

    with sllm.Client(up.address) as client:
        up.server("node", "node-1").kill()
        assert up.read_line().startswith("node-1 ended with status -9")
        wait_until(lambda: _nodes(client) == 2, START_TIMEOUT)

        up.server("control", "--parent").kill()
        assert up.read_line().startswith("control ended with status -9")
        wait_until(lambda: _nodes(client) == 2, START_TIMEOUT)

    assert up.end(signal.SIGTERM) == 0


def _nodes(client: sllm.Client) -> int:
    """How many nodes there are, as far as anybody can tell."""
    try:
        return len(client.nodes())
    except sllm.errors.Unreachable:
        return 0


def test_a_cluster_that_cannot_come_up_says_why(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "sllm.cli.main", "up", f"--port={port}", f"--dir={tmp_path}"],
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: START_FAILED: control did not start: error: UNREACHABLE")


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/sllm"])
def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "sllm.cli.main", "up", "--port=0", f"--dir={tmp_path / place}"],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: START_FAILED: control cannot be started: [Errno ")
    assert done.stderr.count("\n") == 1


def test_a_disk_that_is_read_only_is_told(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        disk.make_read_only()
        with _up(disk.path, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=START_TIMEOUT)
        disk.make_writable()
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: START_FAILED: control cannot be started: [Errno 30] Read-only")


async def test_a_server_starts_although_its_log_is_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "logs", 1 << 20) as disk:
        disk.fill()
        arguments = ("control", f"--dir={tmp_path / 'control'}")
        log = disk.path / "control.log"
        server = Server(Command("control", arguments, "127.0.0.1:0", log), print)
        await server.start()
        try:
            async with sllm.AsyncClient(server.address) as client:
                assert await client.nodes() == []
        finally:
            await server.stop()
        assert log.stat().st_size == 0


def test_the_backoff_grows_to_a_bound_and_begins_anew() -> None:
    backoffs = [next_backoff(None, uptime=0.0)]
    for _ in range(9):
        backoffs.append(next_backoff(backoffs[-1], uptime=1.0))

    assert backoffs[:3] == [FIRST_BACKOFF, 2 * FIRST_BACKOFF, 4 * FIRST_BACKOFF]
    assert backoffs[-1] == LONGEST_BACKOFF
    assert next_backoff(LONGEST_BACKOFF, uptime=STABLE_SECONDS) == FIRST_BACKOFF


def test_it_opens_an_http_door(tmp_path: Path) -> None:
    with _up(tmp_path, "--http", "--http-port=0") as process:
        up = Up(process)
        said = up.read_line()
        if "ready" in said:
            said = up.read_line()
        url = said.split()[0].removesuffix("/v1")
        answer = json.load(urllib.request.urlopen(f"{url}/health", timeout=START_TIMEOUT))
        assert answer == {"status": "ok", "control": up.address}
        assert up.end(signal.SIGINT) == 0
        assert up.all_gone()


def test_a_port_that_is_taken_keeps_no_cluster_from_coming_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(up_plan, "HTTP_PORT", port)
        plan = Plan(tmp_path, 1, 0, None, 1 << 26, None, None)
        assert plan.gateway("127.0.0.1:1").listen == "127.0.0.1:0"
        assert replace(plan, http_port=port).gateway("a:1").listen == f"127.0.0.1:{port}"
    assert plan.gateway("127.0.0.1:1").listen == f"127.0.0.1:{port}"


async def test_it_goes_on_without_a_door_that_nobody_asked_for(tmp_path: Path) -> None:
    plan = Plan(tmp_path, 1, 0, None, 1 << 26, None, None)
    said: list[str] = []
    broken = Command("gateway", ("none-such",), "127.0.0.1:0", tmp_path / "log")
    await cluster._keep_open(Server(broken, said.append), plan, said.append)
    assert said[0].startswith("there is no HTTP gateway: gateway did not start")
    wanted = replace(plan, http_port=8000)
    with pytest.raises(sllm.errors.StartFailed):
        await cluster._keep_open(Server(broken, said.append), wanted, said.append)
