"""What bringing a checkpoint back to a tier would take, from where the tiers below have it now."""

from sllm.node.tiers.dram import DramTier
from sllm.node.tiers.ssd import SsdTier
from sllm.node.transfers.speeds import Speeds


class Reloads:
    """For every tier what its ledger asks; see `Ledger.reload_seconds`."""

    def __init__(self, ssd: SsdTier, dram: DramTier, speeds: Speeds) -> None:
        self._ssd = ssd
        self._dram = dram
        self._speeds = speeds

    def to_ssd(self, _: str, size: int) -> float:
        """Seconds for `size` bytes from the source."""
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
