"""A device's memory, as the tier uses it: allocate, copy chunks, export, free, measure."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from sllm.errors import DeviceFailed, NoCapacity
from sllm.node.device.copy_thread import CopyThread
from sllm.node.device.driver import OUT_OF_MEMORY, CudaError, Driver, MemoryKind
from sllm.node.device.layout import GRANULE

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Allocation:
    """Memory of the device that this process owns."""

    address: int
    size: int
    """Bytes."""
    handle: bytes
    """Opens it in another process."""


class DeviceMemory:
    """One device's memory. Belongs to the event loop; CUDA is called in the device's thread."""

    def __init__(self, driver: Driver, copies: CopyThread) -> None:
        self.copies = copies
        """Carries chunks into allocations."""
        self.allocations: set[int] = set()
        """Addresses of what was allocated and not freed."""
        self.free_bytes = 0
        """As measured last."""
        self.total_bytes = 0
        self._driver = driver

    async def open(self) -> None:
        """Makes the context, and measures.

        Raises:
            DeviceFailed: CUDA cannot.
        """
        await self._guard(self.copies.open())
        await self.measure()

    async def measure(self) -> None:
        """Takes note of how much is free, whoever uses the rest.

        Raises:
            DeviceFailed: CUDA cannot say.
        """
        self.free_bytes, self.total_bytes = await self._run(self._driver.memory)

    async def is_apart(self) -> bool:
        """Whether it is memory that processors cannot read, so that kernels must.

        Raises:
            NoCapacity, DeviceFailed: as `allocate`.
        """
        probe = await self.allocate(GRANULE)
        try:
            kind = await self._run(lambda: self._driver.kind(probe.address))
            return kind is MemoryKind.DEVICE
        finally:
            await uninterrupted(self.free(probe))

    async def allocate(self, size: int) -> Allocation:
        """Takes memory; a caller that is cancelled meanwhile has none.

        Raises:
            NoCapacity: there is not so much; says how much there is.
            DeviceFailed: CUDA has failed.
        """
        taking = asyncio.ensure_future(self._allocate(size))
        try:
            return await uninterrupted(taking)
        except asyncio.CancelledError:
            if taking.exception() is None:
                await self.free(taking.result())
            raise

    async def free(self, allocation: Allocation) -> None:
        """Gives memory back; no worker may have it open. A device that has failed keeps it."""
        self.allocations.discard(allocation.address)
        await self._run(lambda: self._driver.free(allocation.address))
        await self.measure()

    async def pin(self, address: int, size: int) -> None:
        """Pins memory of the host, for copies from it, until `unpin`.

        Raises:
            DeviceFailed: it cannot be pinned.
        """
        await self._run(lambda: self._driver.register(address, size))

    async def unpin(self, address: int) -> None:
        """Undoes `pin`."""
        await self._run(lambda: self._driver.unregister(address))

    async def _allocate(self, size: int) -> Allocation:
        try:
            allocation = await self._run(lambda: self._take(size))
        except _OutOfMemory as error:
            await self.measure()
            raise NoCapacity(
                f"the weights take {size} bytes of the device's memory, of whose "
                f"{self.total_bytes} only {self.free_bytes} are free, as measured; other processes "
                "on the device may have taken some"
            ) from error
        self.allocations.add(allocation.address)
        await self.measure()
        return allocation

    def _take(self, size: int) -> Allocation:
        try:
            address = self._driver.allocate(size)
        except CudaError as error:
            if error.code == OUT_OF_MEMORY:
                raise _OutOfMemory from error
            raise
        try:
            return Allocation(address, size, self._driver.export(address))
        except CudaError:
            self._driver.free(address)
            raise

    async def _run(self, command: Callable[[], Result]) -> Result:
        return await self._guard(self.copies.run(command))

    async def _guard(self, call: Coroutine[Any, Any, Result]) -> Result:
        try:
            return await call
        except CudaError as error:
            raise DeviceFailed(f"the device has failed: {error}; restart the node") from error


async def uninterrupted(work: Coroutine[Any, Any, Result] | asyncio.Future[Result]) -> Result:
    """The result of work that goes on to its end even if the caller is cancelled meanwhile.

    The caller's cancellation takes effect only then.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen here: who is cancelled has no use for it
        raise


class _OutOfMemory(Exception):
    """The device has not as much memory as was asked for."""
