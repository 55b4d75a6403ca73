"""How fast bytes move between tiers, as observed; the start values are measured, never assumed."""

import math
import mmap
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sllm.checkpoint.files.direct_io import DirectFile
from sllm.node.tiers.dram import DramTier
from sllm.node.tiers.ssd import SsdTier

_PROBE_BYTES = 16 << 20
_HALF_LIFE_BYTES = 256 << 20
"""After transfers of as much, an observation has moved half-way to their speed."""

_LEAST_PER_BYTE = 1e-13
"""Seconds: no link is faster."""


class Speed:
    """Bytes per second of a link: transfers count by their size, and old ones fade.

    Those that cross together share the link: the time in which it was busy is counted once.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self._per_byte = 1 / bytes_per_second
        self._is_observed = False
        self._counted_to = -math.inf
        """Clock's seconds up to which the link's time has been counted."""

    @property
    def bytes_per_second(self) -> float:
        """As last observed."""
        return 1 / self._per_byte

    def expect(self, other: "Speed") -> None:
        """Takes it for no faster than another link to the same tier, until it is observed.

        What the tier's disk does is measured, which says nothing of the network before it.
        """
        if not self._is_observed:
            self._per_byte = max(self._per_byte, other._per_byte)

    def observe(self, size_bytes: int, began: float, ended: float) -> None:
        """Takes a transfer into account. A small one says little, and hardly counts.

        Args:
            size_bytes: What has crossed.
            began: Clock's seconds.
            ended: Clock's seconds; those of successive calls must not fall.
        """
        seconds = ended - max(began, self._counted_to)
        self._counted_to = max(ended, self._counted_to)
        if not size_bytes or ended <= began:
            return
        self._is_observed = True
        kept: float = 0.5 ** (size_bytes / _HALF_LIFE_BYTES)
        newest = max(0.0, seconds) / size_bytes
        self._per_byte = max(_LEAST_PER_BYTE, kept * self._per_byte + (1 - kept) * newest)


@dataclass(frozen=True, slots=True)
class Speeds:
    """One for every link of a node."""

    remote_to_ssd: Speed
    ssd_to_dram: Speed
    dram_to_device: Speed
    """On a CPU node nothing crosses this link: the pool is the device."""
    peer_to_ssd: Speed
    """From all other nodes that give a checkpoint at once."""


class Reloads:
    """What bringing a checkpoint back to a tier would take, from where the tiers below have it now.

    Each method answers what the ledger of its tier asks; see `Ledger.reload_seconds`.
    """

    def __init__(self, ssd: SsdTier, dram: DramTier, speeds: Speeds) -> None:
        self._ssd = ssd
        self._dram = dram
        self._speeds = speeds

    def to_ssd(self, digest: str, size: int) -> float:
        """Seconds for `size` bytes from the source; 0: it can be made of what is here."""
        copy = self._ssd.copies.get(digest)
        if copy and copy.made_of in self._ssd.copies:
            return 0.0
        return size / self._speeds.remote_to_ssd.bytes_per_second

    def to_dram(self, digest: str, size: int) -> float:
        """Seconds from SSD, or from the source for what is not there any more."""
        if digest not in self._ssd.copies:
            return self.to_ssd(digest, size)
        return size / self._speeds.ssd_to_dram.bytes_per_second

    def to_device(self, digest: str, size: int) -> float:
        """Seconds of the slowest link on the way: chunks cross them at the same time."""
        copy = size / self._speeds.dram_to_device.bytes_per_second
        return copy if digest in self._dram.copies else max(copy, self.to_dram(digest, size))


def measure(directory: Path) -> Speeds:
    """Writes and reads a short file in `directory`, and copies it in memory.

    Where the disk takes no file, the one for temporary files has to do for a start.

    Raises:
        OSError: that is full too, or fails.
    """
    try:
        return _measure(directory)
    except OSError:
        with tempfile.TemporaryDirectory(prefix="sllm-probe-") as elsewhere:
            return _measure(Path(elsewhere))


def _measure(directory: Path) -> Speeds:
    path = directory / ".probe"
    with mmap.mmap(-1, _PROBE_BYTES) as first, mmap.mmap(-1, _PROBE_BYTES) as second:
        first[:] = os.urandom(_PROBE_BYTES)
        second[:] = first  # memory's first use is slow, and would be measured with the copy
        try:
            written, read = _write(path, first), _read(path, second)
        finally:
            path.unlink(missing_ok=True)
        began = time.perf_counter()
        second[:] = first
        copied = _PROBE_BYTES / (time.perf_counter() - began)
    return Speeds(Speed(written), Speed(read), Speed(copied), Speed(written))


def _write(path: Path, memory: mmap.mmap) -> float:
    with (
        DirectFile(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file,
        memoryview(memory) as view,
    ):
        began = time.perf_counter()
        file.write_from(view, 0)
        file.flush()
        return _PROBE_BYTES / (time.perf_counter() - began)


def _read(path: Path, memory: mmap.mmap) -> float:
    with DirectFile(path, os.O_RDONLY) as file, memoryview(memory) as view:
        began = time.perf_counter()
        file.read_into(view, 0)
        return _PROBE_BYTES / (time.perf_counter() - began)
