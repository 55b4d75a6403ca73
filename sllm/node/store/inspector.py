"""What sources lead to: looked at without importing them."""

from collections.abc import Iterable

from sllm.checkpoint.format.manifest import TensorEntry
from sllm.checkpoint.importing.import_plan import plan_import
from sllm.checkpoint.sources.sources import parse_source
from sllm.node.store.removal import Removal
from sllm.node.tiers.checkpoints import Checkpoint, SourceRecord
from sllm.node.tiers.dram import DramTier
from sllm.node.tiers.ssd import SsdTier
from sllm.node.transfers.loads import Threads
from sllm.node.transfers.sources import FoundSource, Sources
from sllm.node.transfers.work import Found


class Inspector:
    """Looks at sources, and at what the tiers hold of them. Belongs to the event loop."""

    def __init__(
        self, ssd: SsdTier, dram: DramTier, sources: Sources, threads: Threads, removal: Removal
    ) -> None:
        self._ssd = ssd
        self._dram = dram
        self._sources = sources
        self._threads = threads
        self._removal = removal

    async def look(
        self, source: str, dtype: str | None, *, fresh: bool, identity: str = ""
    ) -> FoundSource:
        """A source as it is now; as `TierStore.inspect`, of which it is the beginning."""
        place = parse_source(source)
        known = self._ssd.last_known(place.url, dtype)
        found = await self._sources.look(place, dtype, known, fresh=fresh)
        found.check(identity)
        return found

    async def inspect(self, source: str, dtype: str | None, *, fresh: bool, identity: str) -> Found:
        """See `TierStore.inspect`."""
        found = await self.look(source, dtype, fresh=fresh, identity=identity)
        held = self._find(found.record)
        if held is not None and await self._removal.is_there(held):
            manifest = held.manifest
            size = _tensor_bytes(manifest.tensors)
            digest = manifest.digest
            return Found(held.directory, size, digest, found.record, manifest.tensors)
        files = await self._sources.files(found)
        plan = await self._threads.run(lambda: plan_import(files, dtype))
        readable = await self._sources.readable(files)
        size = plan.tensor_bytes
        return Found(readable.directory, size, None, found.record, plan.tensors, readable)

    def _find(self, record: SourceRecord) -> Checkpoint | None:
        dram = self._dram.find(record)
        return dram.checkpoint if dram is not None else self._ssd.find(record)


def _tensor_bytes(tensors: Iterable[TensorEntry]) -> int:
    return sum(tensor.size for tensor in tensors)
