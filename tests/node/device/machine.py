"""A tier store with devices above it, over small tiers and a double of libcuda."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import torch

from sllm.checkpoint.format.manifest import TensorEntry
from sllm.checkpoint.reading.tensors import torch_form
from sllm.clock import MonotonicClock
from sllm.node.device.cuda_devices import Budget, CudaDevices
from sllm.node.device.driver import Driver
from sllm.node.device.interface import OnDevice, Placed, Seat, WeightsWish
from sllm.node.device.selection import Selected
from sllm.node.transfers.work import Progress
from tests.checkpoint.checkpoints import assert_same, random_weights
from tests.node.device.fake_cuda import FakeCuda
from tests.node.stores import Bench

MODEL_BYTES = 2 << 20
"""On a device, for one of the small models: its allocation's granule."""
ALL_KV_BYTES = 1 << 20
"""Of each device, beside its models, and what KV caches may have at most."""
RESERVE_BYTES = 1 << 20
KV_BYTES = 1 << 18
"""Of an instance."""


class Machine:
    """The parts, and models to bring up."""

    def __init__(self, directory: Path) -> None:
        self.bench = Bench(directory)
        self.cuda = FakeCuda()
        self.devices: CudaDevices
        self._seats = AsyncExitStack()

    async def open(
        self,
        *,
        devices: int = 1,
        device_models: float = 4,
        pool_models: float = 8,
        ssd_models: float = 8,
        kv_bytes: int | None = ALL_KV_BYTES,
    ) -> None:
        """Opens tiers with room for so many models; each device has as much, and KV caches'."""
        store = await self.bench.open(ssd_models, pool_models)
        memory = int(device_models * MODEL_BYTES) + ALL_KV_BYTES + RESERVE_BYTES
        self.cuda = FakeCuda(devices, memory)
        self.devices = CudaDevices(store, self.bench.pool, MonotonicClock())
        selected = Selected(Driver(self.cuda), tuple(range(devices)))
        await self.devices.open(selected, Budget(kv_bytes, RESERVE_BYTES))

    async def close(self) -> None:
        """Closes everything, and checks that all is in order to the last."""
        self.cuda.gate.set()
        await self._seats.aclose()
        self.devices.check_integrity()
        await self.devices.close()
        assert self.cuda.leaks == {}
        await self.bench.close()

    async def reopen(self, **sizes: Any) -> None:
        """The same machine with other sizes; see `open`."""
        await self.close()
        await self.open(**sizes)

    async def seat(self, seed: int, kv_bytes: int = KV_BYTES) -> Seat:
        """A device for an instance of a model, until the end."""
        found = await self.bench.store.inspect(self.bench.model(seed), None)
        return await self._seats.enter_async_context(self.devices.seat(found, kv_bytes))

    async def free_seats(self) -> None:
        """Ends all instances."""
        await self._seats.aclose()

    async def bring_up(self, seed: int, *, pack: bool = True) -> Placed:
        """Brings a model up, and checks its bytes on the device, and the books."""
        seen: list[Progress] = []
        seat = await self.seat(seed)
        placed = await seat.bring_up(self.wish(seed, pack=pack), seen.append)
        self.check(placed, seed)
        return placed

    def wish(self, seed: int, *, pack: bool = True) -> WeightsWish:
        """The weights of a model."""
        return WeightsWish(self.bench.model(seed), None, pack)

    def check(self, placed: Placed, seed: int) -> None:
        """Fails unless a model's bytes are on the device, and all books are in order."""
        self.bench.store.check_integrity()
        self.devices.check_integrity()
        place = placed.place
        assert isinstance(place, OnDevice)
        found = {entry.name: self._read(place, entry) for entry in placed.manifest.tensors}
        assert_same(found, random_weights(seed))

    def _read(self, place: OnDevice, entry: TensorEntry) -> torch.Tensor:
        dtype, shape = torch_form(entry)
        if not entry.size:
            return torch.empty(shape, dtype=dtype)
        address = self.cuda.handles[place.handle] + place.partitions[entry.partition]
        raw = bytearray(self.cuda.content(address + entry.offset, entry.size))
        return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(shape)

    @property
    def on_device(self) -> set[str]:
        """Digests of the whole copies on devices."""
        return {
            copy.digest for copy in self.devices.copies() if copy.resident_bytes == copy.size_bytes
        }
