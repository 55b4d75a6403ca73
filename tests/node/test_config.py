"""What a node cannot be told to be."""

import socket
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from sllm.errors import InvalidArgument
from sllm.node import server
from sllm.node.config import MIB, SOCKET_NAME, NodeConfig

MEMORY = 64 * MIB


def config(listen: str = "127.0.0.1:0", advertise: str | None = None, dram: int = 1) -> NodeConfig:
    return NodeConfig(
        control_address="localhost:1",
        directory=Path("unused"),
        listen_address=listen,
        advertise_host=advertise,
        dram_bytes=dram,
    )


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (config(dram=MEMORY + 1), "more than the 67108864 of memory"),
        (config(listen="0.0.0.0:0"), "--advertise"),
        (config(listen="[::]:7000"), "--advertise"),
        (replace(config(), engines=()), "--engines"),
        (replace(config(), engines=("llama.cpp",)), "of vllm, transformers"),
        (replace(config(), engines=("transformers", "transformers")), "name each once"),
    ],
)
def test_what_cannot_work_is_refused(bad: NodeConfig, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        bad.check(MEMORY)


def test_an_engine_that_is_not_installed_is_refused_with_how_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sllm.node.config.installed", lambda: ("transformers",))
    replace(config(), engines=("transformers",)).check(MEMORY)
    with pytest.raises(InvalidArgument, match="tools/install-vllm"):
        replace(config(), engines=("vllm", "transformers")).check(MEMORY)


def test_sockets_fit_until_their_paths_are_too_long(tmp_path: Path) -> None:
    """As the kernel says it: of a socket with the longest name that one gets."""
    for length in range(70, 110):
        directory = Path("/tmp") / ("d" * (length - len("/tmp/")))
        sockets = replace(config(), directory=directory)
        name = str(sockets.socket_dir / f"{'x' * SOCKET_NAME}.sock")
        with socket.socket(socket.AF_UNIX) as one:
            try:
                one.connect(name)
            except FileNotFoundError:
                assert sockets.sockets_fit
            except OSError:
                assert not sockets.sockets_fit


def test_where_sockets_do_not_fit_they_are_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    long = replace(config(), directory=tmp_path / ("d" * 100))
    with ExitStack() as stack:
        if replace(config(), run_directory=tmp_path / "sllm-run-12345678").sockets_fit:
            moved = server.with_sockets(long, stack)
            assert moved.sockets_fit
            assert moved.socket_dir.is_dir()
    assert not list(tmp_path.glob("sllm-run-*"))
    (tmp_path / ("t" * 100)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("t" * 100)))
    with ExitStack() as stack, pytest.raises(InvalidArgument, match="TMPDIR"):
        server.with_sockets(long, stack)


def test_what_can_is_not() -> None:
    config(dram=MEMORY).check(MEMORY)
    config(listen="0.0.0.0:0", advertise="node.example").check(MEMORY)
