"""The device tier over the driver itself: on a GPU where there is one, and over the double."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.reading.tensors import torch_form
from sllm.clock import MonotonicClock
from sllm.errors import NoCapacity
from sllm.node.device.cuda_devices import Budget, CudaDevices
from sllm.node.device.driver import Driver, MemoryKind, load_driver
from sllm.node.device.interface import OnDevice, Placed, WeightsWish
from sllm.node.device.selection import Selected
from sllm.node.worker.model.device_weights import bytes_at, device_problem
from tests.checkpoint.checkpoints import assert_same, random_weights
from tests.node.device.fake_cuda import FakeCuda
from tests.node.stores import Bench
from tests.support import assert_eventually

SLACK_BYTES = 64 << 20
"""What a GPU's driver may take for itself meanwhile."""


@dataclass
class Real:
    """Devices over a driver, without a worker: bytes are looked at from this process."""

    driver: Driver
    double: bool
    bench: Bench
    devices: CudaDevices = field(init=False)

    async def open(self, pool_models: float = 8) -> None:
        store = await self.bench.open(pool_models=pool_models)
        self.devices = CudaDevices(store, self.bench.pool, MonotonicClock())
        await self.devices.open(Selected(self.driver, (0,)), Budget(None, 1 << 20))

    async def close(self) -> None:
        self.devices.check_integrity()
        await self.devices.close()
        await self.bench.close()

    async def bring_up(self, seed: int, held: AsyncExitStack, *, pack: bool = True) -> Placed:
        source = self.bench.model(seed)
        found = await self.bench.store.inspect(source, None)
        seat = await held.enter_async_context(self.devices.seat(found, 0))
        placed = await seat.bring_up(WeightsWish(source, None, pack), lambda _: None)
        held.callback(placed.release)
        return placed

    def check(self, placed: Placed, seed: int) -> None:
        """Fails unless the device has a model's bytes."""
        assert isinstance(placed.place, OnDevice)
        (copy,) = (
            copy
            for seats in self.devices.all
            for copy in seats.tier.copies.by_digest.values()
            if copy.memory.handle == placed.place.handle
        )
        raw = self._bytes(copy.memory.address, placed.place.size_bytes)
        assert_same(_tensors(placed.manifest, placed.place, raw), random_weights(seed))

    def _bytes(self, address: int, size: int) -> torch.Tensor:
        self.driver.enter(0)
        try:
            return bytes_at(self.driver, address, size).cpu()
        finally:
            self.driver.leave(0)

    @property
    def free_bytes(self) -> int:
        return self.devices.infos()[0].free_bytes


def _tensors(manifest: Manifest, place: OnDevice, raw: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {}
    for entry in manifest.tensors:
        dtype, shape = torch_form(entry)
        start = place.partitions[entry.partition] + entry.offset
        found[entry.name] = raw[start : start + entry.size].clone().view(dtype).reshape(shape)
    return found


@pytest.fixture(params=["double", pytest.param("cuda", marks=pytest.mark.cuda)])
async def real(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Real]:
    double = request.param == "double"
    if not double and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    driver = Driver(FakeCuda()) if double else load_driver()
    real = Real(driver, double, Bench(tmp_path))
    await real.open()
    yield real
    await real.close()


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "in place"])
async def test_the_bytes_are_on_the_device(real: Real, pack: bool) -> None:
    async with AsyncExitStack() as held:
        real.check(await real.bring_up(0, held, pack=pack), 0)


async def test_they_are_where_more_than_the_pool_passes_through_it(real: Real) -> None:
    await real.close()
    await real.open(pool_models=0.5)
    async with AsyncExitStack() as held:
        real.check(await real.bring_up(0, held), 0)
    assert real.bench.pool.used_bytes == 0


async def test_several_at_once_are_not_mixed_up(real: Real) -> None:
    async with AsyncExitStack() as held:
        placed = await asyncio.gather(*(real.bring_up(seed, held) for seed in range(4)))
        for seed, one in enumerate(placed):
            real.check(one, seed)


async def test_the_memory_comes_back_as_measured(real: Real) -> None:
    before = real.free_bytes
    async with AsyncExitStack() as held:
        digests = [(await real.bring_up(seed, held)).manifest.digest for seed in range(3)]
        assert real.free_bytes < before
    for digest in digests:
        await real.devices.evict(digest)
    slack = 0 if real.double else SLACK_BYTES
    assert real.free_bytes >= before - slack


async def test_a_load_that_is_given_up_leaves_nothing(real: Real) -> None:
    before = real.free_bytes
    async with AsyncExitStack() as held:
        loading = asyncio.create_task(real.bring_up(0, held))
        await assert_eventually(lambda: real.free_bytes < before or loading.done())
        loading.cancel()
        await asyncio.wait([loading])
    # A load that came first is there to stay; one that did not takes its copy away by itself.
    await assert_eventually(lambda: not any(one.leased for one in real.devices.copies()))
    for copy in real.devices.copies():
        await real.devices.evict(copy.digest)
    slack = 0 if real.double else SLACK_BYTES
    await assert_eventually(lambda: real.free_bytes >= before - slack)


async def test_more_than_there_is_is_refused_with_the_numbers(real: Real) -> None:
    memory = real.devices.all[0].tier.memory
    with pytest.raises(NoCapacity, match=rf"{1 << 45} bytes .* of whose {memory.total_bytes} only"):
        await memory.allocate(1 << 45)
    assert memory.allocations == set()


async def test_the_driver_knows_whose_memory_it_is(real: Real) -> None:
    """And a device that torch is told of by its name is the one that was opened."""
    memory = real.devices.all[0].tier.memory
    kind = await memory.copies.run(lambda: real.driver.kind(real.bench.pool.base_address))
    assert kind is MemoryKind.HOST
    assert await memory.is_apart() is not real.double
    if not real.double:
        name = str(torch.cuda.get_device_properties(0).uuid)
        assert real.driver.uuid(0).removeprefix("GPU-") == name.removeprefix("GPU-")
        assert device_problem() == ""
