"""What a node cannot be told to be."""

import socket
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm import machine
from sllm.errors import InvalidArgument
from sllm.node.config import INSTANCE_BYTES, MIB, OWN_BYTES, VLLM_BYTES, NodeConfig
from sllm.node.directory import with_sockets
from sllm.node.instances.launching import SOCKET_NAME

GIB = 1024 * MIB


def config(
    listen: str = "127.0.0.1:0",
    advertise: str | None = None,
    *,
    memory: int = 64 * GIB,
    dram: int | None = None,
    kv: int | None = None,
) -> NodeConfig:
    return NodeConfig(
        control_address="localhost:1",
        directory=Path("unused"),
        listen_address=listen,
        advertise_host=advertise,
        memory_bytes=memory,
        dram_bytes=dram,
        kv_bytes=kv,
        engines=("transformers",),
    )


@pytest.fixture(autouse=True)
def _a_large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 64 * GIB)


@pytest.mark.parametrize("bad", [config(listen="0.0.0.0:0"), config(listen="[::]:7000")])
def test_an_address_that_cannot_work_is_refused(bad: NodeConfig) -> None:
    with pytest.raises(InvalidArgument, match="--advertise"):
        bad.check()


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (config(memory=GIB, dram=GIB), r"^1.0 GiB for weights \(--dram\), .*fit the 1.0 GiB of"),
        (config(memory=GIB, kv=GIB), r"1.0 GiB for KV caches \(--kv\), .*fit the 1.0 GiB of"),
        (config(memory=4 * GIB, dram=2 * GIB, kv=2 * GIB), "2.0 GiB for weights.* the 4.0 GiB of"),
        # Each would fit, but not with what the node takes beside them.
        (config(memory=4 * GIB, dram=4 * GIB - OWN_BYTES, kv=1), "384.0 MiB for the node itself"),
        (config(memory=OWN_BYTES), "384.0 MiB for the node itself, 64.0 MiB for an instance"),
        (config(memory=0), "fit the 0 B of memory"),
    ],
)
def test_sizes_that_do_not_fit_the_memory_are_refused(bad: NodeConfig, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        bad.check_memory(on_devices=False)


def test_more_memory_than_the_machine_or_its_cgroup_has_is_refused() -> None:
    config(memory=64 * GIB).check()
    with pytest.raises(InvalidArgument, match=r"65.0 GiB .* lets it take 64.0 GiB"):
        config(memory=65 * GIB).check()


def test_kv_caches_on_devices_take_none_of_the_memory() -> None:
    node = config(memory=4 * GIB, dram=2 * GIB, kv=64 * GIB)
    node.check_memory(on_devices=True)
    with pytest.raises(InvalidArgument):
        node.check_memory(on_devices=False)


@given(
    memory=st.integers(OWN_BYTES + INSTANCE_BYTES + 32 * MIB, 1 << 42),
    dram=st.none() | st.integers(1, 1 << 42),
    kv=st.none() | st.integers(1, 1 << 42),
)
def test_what_nobody_asked_for_fits_whatever_is_left(
    memory: int, dram: int | None, kv: int | None
) -> None:
    """Where what was asked for leaves room for a pool of a chunk, the defaults never refuse."""
    node = config(memory=memory, dram=dram, kv=kv)
    asked = (dram or 32 * MIB) + (kv or 0)
    if asked <= memory - OWN_BYTES - INSTANCE_BYTES and (dram is None or dram >= node.chunk_bytes):
        node.check_memory(on_devices=False)
        assert node.instances_bytes(node.pool_kv_bytes) >= INSTANCE_BYTES
    assert node.pool_bytes == dram or node.pool_bytes <= 4 * GIB
    assert node.pool_kv_bytes == kv or node.pool_kv_bytes <= 2 * GIB


def test_a_machine_of_usual_size_gets_the_usual_sizes() -> None:
    assert (config().pool_bytes, config().pool_kv_bytes) == (4 * GIB, 2 * GIB)


def test_an_engine_that_is_not_installed_is_refused_with_how_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sllm.node.config.installed", lambda: ("transformers",))
    config().check()
    with pytest.raises(InvalidArgument, match="tools/install-vllm"):
        replace(config(), engines=("vllm", "transformers")).check()


@pytest.mark.parametrize(
    ("engines", "complaint"),
    [
        ((), "--engines"),
        (("llama.cpp",), "of vllm, transformers"),
        (("transformers", "transformers"), "name each once"),
    ],
)
def test_engines_that_cannot_be_are_refused(engines: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        replace(config(), engines=engines).check()


def test_the_zygote_of_vllm_takes_memory_of_the_node() -> None:
    one = config(memory=4 * GIB, dram=GIB)
    both = replace(one, engines=("vllm", "transformers"))
    assert both.own_bytes == OWN_BYTES + VLLM_BYTES
    assert both.instances_bytes(0) == one.instances_bytes(0) - VLLM_BYTES


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
            moved = with_sockets(long, stack)
            assert moved.sockets_fit
            assert moved.socket_dir.is_dir()
    assert not list(tmp_path.glob("sllm-run-*"))
    (tmp_path / ("t" * 100)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("t" * 100)))
    with ExitStack() as stack, pytest.raises(InvalidArgument, match="TMPDIR"):
        with_sockets(long, stack)


def test_what_can_is_not() -> None:
    config(memory=8 * GIB, dram=4 * GIB, kv=2 * GIB).check_memory(on_devices=False)
    config(listen="0.0.0.0:0", advertise="node.example").check()


def test_what_is_compiled_is_kept_where_nodes_may_share_it(tmp_path: Path) -> None:
    assert config().kernel_variables == {}
    variables = replace(config(), kernel_cache=tmp_path).kernel_variables
    assert variables["VLLM_CACHE_ROOT"] == str(tmp_path / "vllm")
    assert len(set(variables.values())) == len(variables)
