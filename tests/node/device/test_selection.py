from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from sllm.clock import MonotonicClock
from sllm.errors import DeviceUnavailable, Internal, InvalidArgument
from sllm.node.config import NodeConfig
from sllm.node.device import selection
from sllm.node.device.cuda_devices import CudaDevices, Probe
from sllm.node.device.driver import (
    LIBRARY_VARIABLE,
    WORKER_DEVICE_VARIABLE,
    Driver,
    MemoryKind,
)
from sllm.node.device.pool_device import PoolDevice
from sllm.node.device.selection import Selected, Wanted, parse_device, select
from sllm.node.server import open_devices
from tests.node.device.fake_cuda import UNKNOWN, FakeCuda
from tests.node.device.machine import Machine


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cpu", Wanted(cuda=False, required=False)),
        ("auto", Wanted(cuda=True, required=False)),
        ("cuda", Wanted(cuda=True)),
        ("cuda:0", Wanted(cuda=True, indices=(0,))),
        ("cuda:2,0", Wanted(cuda=True, indices=(2, 0))),
    ],
)
def test_what_is_asked_for(text: str, wanted: Wanted) -> None:
    assert parse_device(text) == wanted


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:a", "cuda:0,", "cuda:-1", "cuda:0,0"])
def test_what_cannot_be_asked_for(text: str) -> None:
    with pytest.raises(InvalidArgument, match="device"):
        parse_device(text)


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "libnone.so"))


@pytest.mark.usefixtures("no_driver")
def test_without_a_driver_cuda_is_refused_and_auto_is_the_cpu() -> None:
    with pytest.raises(DeviceUnavailable, match=r"no CUDA driver: .*libnone\.so.* --device cpu"):
        select(parse_device("cuda"))
    assert select(parse_device("auto")) is None
    assert select(parse_device("cpu")) is None


def test_a_library_that_is_no_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, "libc.so.6")
    with pytest.raises(DeviceUnavailable, match="no CUDA driver"):
        select(parse_device("cuda"))


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    library = FakeCuda(devices=2)
    monkeypatch.setattr(selection, "load_driver", lambda: Driver(library))
    return library


@pytest.mark.usefixtures("two_devices")
def test_all_devices_unless_some_are_named() -> None:
    for text, indices in (("auto", (0, 1)), ("cuda", (0, 1)), ("cuda:1", (1,))):
        selected = select(parse_device(text))
        assert selected is not None
        assert selected.indices == indices


@pytest.mark.usefixtures("two_devices")
def test_a_device_that_is_not_there_is_refused_with_the_numbers() -> None:
    with pytest.raises(DeviceUnavailable, match=r"no device 5: this machine has 2 CUDA devices"):
        select(parse_device("cuda:0,5"))


def test_a_machine_without_devices(two_devices: FakeCuda) -> None:
    two_devices.devices = 0
    with pytest.raises(DeviceUnavailable, match="no device: this machine has 0"):
        select(parse_device("cuda"))
    assert select(parse_device("auto")) is None


def test_a_driver_that_does_not_answer(two_devices: FakeCuda) -> None:
    two_devices.fails["cuDeviceGetCount"] = UNKNOWN
    with pytest.raises(DeviceUnavailable, match="cuDeviceGetCount"):
        select(parse_device("cuda"))
    assert select(parse_device("auto")) is None


async def test_a_device_too_small_is_refused_with_the_numbers(machine: Machine) -> None:
    with pytest.raises(DeviceUnavailable, match=r"device 0 \(Fake GPU\) is too small: .* leaves 0"):
        await machine.reopen(device_models=-0.5)
    await machine.close()
    await machine.open()


async def fit(environment: Mapping[str, str]) -> str:
    """What a zygote says whose torch can use the device."""
    assert environment[WORKER_DEVICE_VARIABLE] == "cuda"
    return ""


async def unfit(environment: Mapping[str, str]) -> str:
    """And one whose torch cannot."""
    return "torch 2 was built without CUDA"


async def crashed(environment: Mapping[str, str]) -> str:
    """And one whose torch does not even answer."""
    raise Internal("a child of the zygote failed with wait status 11")


@pytest.mark.parametrize(
    ("probe", "says"), [(unfit, "built without CUDA"), (crashed, "wait status 11")]
)
async def test_a_device_that_the_engine_cannot_use_is_unfit(
    machine: Machine, tmp_path: Path, probe: Probe, says: str
) -> None:
    cuda = FakeCuda()
    cuda.kind = MemoryKind.DEVICE
    config = NodeConfig("127.0.0.1:0", tmp_path, device_reserve_bytes=1 << 20)
    parts = (machine.bench.store, machine.bench.pool, MonotonicClock(), probe)
    async with AsyncExitStack() as stack:
        unasked = Selected(Driver(cuda), (0,), required=False)
        devices = await open_devices(config, unasked, *parts, stack)
        assert isinstance(devices, PoolDevice)
        with pytest.raises(DeviceUnavailable, match=rf"use device 0 \(Fake GPU\): .*{says}.*cpu"):
            await open_devices(config, replace(unasked, required=True), *parts, stack)
        assert cuda.leaks == {}


async def test_memory_that_processors_read_needs_no_kernels(
    machine: Machine, tmp_path: Path
) -> None:
    config = NodeConfig("127.0.0.1:0", tmp_path, device_reserve_bytes=1 << 20)
    parts = (machine.bench.store, machine.bench.pool, MonotonicClock(), unfit)
    async with AsyncExitStack() as stack:
        selected = Selected(Driver(FakeCuda()), (0,))
        devices = await open_devices(config, selected, *parts, stack)
        assert isinstance(devices, CudaDevices)


async def test_a_node_serves_without_devices_that_are_unfit_unless_they_were_asked_for(
    machine: Machine, tmp_path: Path
) -> None:
    cuda = FakeCuda()
    config = NodeConfig("127.0.0.1:0", tmp_path, device_reserve_bytes=1 << 40)
    parts = (machine.bench.store, machine.bench.pool, MonotonicClock(), fit)
    async with AsyncExitStack() as stack:
        unasked = Selected(Driver(cuda), (0,), required=False)
        devices = await open_devices(config, unasked, *parts, stack)
        assert isinstance(devices, PoolDevice)
        with pytest.raises(DeviceUnavailable, match="too small"):
            await open_devices(config, replace(unasked, required=True), *parts, stack)
        assert cuda.leaks == {}
