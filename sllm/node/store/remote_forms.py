"""What `sllm pack --for` has made of a packed checkpoint that lies elsewhere, found beside it.

It is brought here in the place of what is published: a start needs one of both.
"""

from dataclasses import replace
from functools import partial

from sllm.checkpoint.format.form import FORMS_DIRECTORY, expect_form
from sllm.checkpoint.remote.snapshot import Snapshot
from sllm.checkpoint.sources.sources import LocalSource, SourceFiles
from sllm.errors import SourceForbidden, SourceNotAllowed, SourceNotFound, SourceUnavailable
from sllm.node.transfers.loads import Threads
from sllm.node.transfers.sources import FoundSource, Sources
from sllm.node.transfers.work import Form

_NONE = (SourceNotFound, SourceForbidden, SourceNotAllowed, SourceUnavailable, TimeoutError)


class RemoteForms:
    """Looks for them where checkpoints come from. Belongs to the event loop."""

    def __init__(self, sources: Sources, threads: Threads, chunk_bytes: int) -> None:
        """`chunk_bytes`: of chunks as the pool has them."""
        self._sources = sources
        self._threads = threads
        self._chunk_bytes = chunk_bytes

    async def find(self, found: FoundSource, form: Form) -> FoundSource | None:
        """A packed checkpoint as it was made ready, where it lies. None: it was not.

        Raises:
            CheckpointCorrupt, InvalidSource: What lies there contradicts itself, or is of another
                checkpoint.
            SllmError: The checkpoint itself cannot be had.
        """
        place = found.place
        if isinstance(place, LocalSource) or not isinstance(found.contents, Snapshot):
            return None
        base = await self._sources.files(found)
        if base.packed is None:
            return None
        within = place.directory(f"{FORMS_DIRECTORY}/{form.name}")
        try:
            contents = await self._sources.within(within)
        except _NONE:
            return None
        if contents is None:
            return None
        made_of = base.packed.digest
        record = replace(found.record, form=form.name, made_of=made_of)
        ready = FoundSource(within, record, contents)
        try:
            files = await self._sources.files(ready)
        except _NONE:
            return None  # its directory may be listed, or was, and what is in it not be had
        check = partial(expect_form, files.directory, record.form, record.made_of)
        await self._threads.run(check)
        return ready if self._is_of_use(files) else None

    def _is_of_use(self, files: SourceFiles) -> bool:
        packed = files.packed
        return packed is not None and all(
            one.chunk_size == self._chunk_bytes for one in packed.partitions
        )
