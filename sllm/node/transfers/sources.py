"""Sources as this node finds them, and the small files that were fetched or copied from them."""

import asyncio
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread

import structlog

from sllm.checkpoint.format.file_errors import cannot_open
from sllm.checkpoint.remote.remotes import Remotes, Sighting
from sllm.checkpoint.remote.snapshot import Snapshot
from sllm.checkpoint.sources.identity import identify
from sllm.checkpoint.sources.outline import write_outline
from sllm.checkpoint.sources.policy import EVERYTHING, SourcePolicy
from sllm.checkpoint.sources.remote_urls import HubRepository, RemoteDirectory
from sllm.checkpoint.sources.sources import LocalSource, SourceFiles, fingerprint, inspect
from sllm.clock import Clock
from sllm.errors import SllmError, SourceChanged, SourceForbidden, SourceNotFound, SourceUnavailable
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.ssd_files import STAGED
from sllm.node.transfers.loads import Threads

FRESH_SECONDS = 30.0
"""How long a look at a remote source holds good."""
PATIENCE_SECONDS = 5.0
"""How long a remote source is waited for if this node holds what it was before."""
_STAGED_SOURCES = 16
"""Sources whose small files are kept, in case they are looked at or imported next."""

_IDENTITIES = 1024
"""States of local sources whose identity is kept."""

_GONE = (SourceNotFound, SourceForbidden, SourceUnavailable, TimeoutError)

_log = structlog.get_logger()

Place = LocalSource | RemoteDirectory | HubRepository
"""What a source's URL names."""


@dataclass(frozen=True, slots=True)
class FoundSource:
    """A source at one moment."""

    place: Place
    record: SourceRecord
    contents: LocalSource | Snapshot | None
    """Where to read it; None: it is gone, or cannot be had now, and was imported before."""

    def check(self, identity: str) -> None:
        """Makes sure that it is what is expected there, unless that is empty.

        Raises:
            SourceChanged: it is something else.
        """
        found = self.record.identity
        if identity and found and found != identity:
            raise SourceChanged(
                f"{self.record.url} is not what was deployed: its weights, configuration, "
                "tokenizer or templates have changed since. Deploy it again to serve what is there "
                "now, or bring back what was there",
                metadata={"source": self.record.url, "expected": identity, "found": found},
            )


class Sources:
    """Looks at sources, and fetches what has to be known of them. Belongs to the event loop."""

    def __init__(
        self,
        threads: Threads,
        remotes: Remotes,
        directory: Path,
        clock: Clock,
        policy: SourcePolicy = EVERYTHING,
    ) -> None:
        """Looks at nothing yet.

        Args:
            threads: those that wait for disks and networks.
            remotes: remote sources.
            directory: where small files are fetched to, if it can be written.
            clock: tells how old a look at a source is.
            policy: what may be looked at.
        """
        self._threads = threads
        self._remotes = remotes
        self._directory = directory
        self._clock = clock
        self._policy = policy
        self._seen: dict[str, tuple[float, Sighting]] = {}
        """Of remote sources, by URL: those that are fresh, when the last was added."""
        self._missed: dict[str, float] = {}
        """When there was nothing in directories within sources, by URL: those that are fresh."""
        self._identities: OrderedDict[tuple[str, str], str] = OrderedDict()
        """Of local sources, by URL and fingerprint: those looked at last."""
        self._staged: OrderedDict[tuple[str, str], asyncio.Task[SourceFiles]] = OrderedDict()
        self._let_gone: set[Path] = set()
        """Of what is not kept any more, and is still read."""

    async def look(
        self, place: Place, dtype: str | None, known: SourceRecord | None, *, fresh: bool
    ) -> FoundSource:
        """A source as it is now or, if it cannot be had, as it was when it was last imported.

        Args:
            place: what its URL names.
            dtype: what its weights are to be converted to.
            known: what it was when it was last imported.
            fresh: whether a remote source is asked anew, even if it was a moment ago.

        Raises:
            SourceNotAllowed: it may not be read, whether or not it was imported.
            SourceNotFound, SourceForbidden, SourceUnavailable: it cannot be had, and was never
                imported.
            InvalidSource: it is of a kind that cannot be read.
            CheckpointCorrupt: it contradicts itself, or is being written to.
        """
        try:
            place = await self._threads.run(partial(self._policy.admit, place))
            sighting = await self._sight(place, fresh, PATIENCE_SECONDS if known else None)
        except _GONE as error:
            if known is None:
                raise
            _log.warning("node.source_gone", url=place.url, problem=str(error) or "no answer")
            return FoundSource(place, known, None)
        identity = await self._identity(place, sighting)
        record = SourceRecord(place.url, sighting.fingerprint, dtype, identity)
        return FoundSource(place, record, sighting.contents)

    async def within(self, place: RemoteDirectory | HubRepository) -> Snapshot | None:
        """What lies in a directory within a source, which need not be a model's. None: nothing.

        That nothing is there is known for as long as what is there.

        Raises:
            SourceNotAllowed: it may not be read.
            SourceForbidden, SourceUnavailable, InvalidSource: it cannot be had.
            TimeoutError: it takes too long.
        """
        missed = self._missed.get(place.url)
        if missed is not None and self._is_fresh(missed):
            return None
        await self._threads.run(partial(self._policy.admit, place))
        try:
            contents = (await self._sight(place, False, PATIENCE_SECONDS)).contents
        except SourceNotFound:
            self._missed = {url: at for url, at in self._missed.items() if self._is_fresh(at)}
            self._missed[place.url] = self._clock.now()
            return None
        return replace(contents, of_model=False) if isinstance(contents, Snapshot) else None

    async def _identity(self, place: Place, sighting: Sighting) -> str:
        """Of a remote source its state as its server names it, which is the same for every node."""
        if not isinstance(place, LocalSource):
            return sighting.fingerprint
        key = place.url, sighting.fingerprint
        if key not in self._identities:
            work = partial(identify, place, sighting.fingerprint)
            self._identities[key] = await self._threads.run(work)
            if len(self._identities) > _IDENTITIES:
                self._identities.popitem(last=False)
        return self._identities[key]

    async def _sight(self, place: Place, fresh: bool, patience: float | None) -> Sighting:
        if isinstance(place, LocalSource):
            return Sighting(await self._threads.run(partial(fingerprint, place)), place)
        seen = self._seen.get(place.url)
        if seen and not fresh and self._is_fresh(seen[0]):
            return seen[1]
        async with asyncio.timeout(patience):
            look = partial(self._remotes.look, place, self._threads.closing.is_set)
            sighting = await self._threads.run(look)
        # What is stale is forgotten here, or sources that nobody asks for again would add up.
        self._seen = {url: one for url, one in self._seen.items() if self._is_fresh(one[0])}
        self._seen[place.url] = self._clock.now(), sighting
        return sighting

    def _is_fresh(self, looked_at: float) -> bool:
        return self._clock.now() - looked_at < FRESH_SECONDS

    async def files(self, source: FoundSource) -> SourceFiles:
        """What a source consists of, its small files in a directory of this machine.

        Raises:
            SourceNotFound, SourceForbidden, SourceUnavailable: it cannot be had.
            InvalidSource: it holds no model, or not in a form that can be read.
            CheckpointCorrupt: a file contradicts itself, or others; names it.
            ShuttingDown: the store was closed.
        """
        contents = source.contents or (await self._sight(source.place, True, None)).contents
        if isinstance(contents, LocalSource):
            return await self._threads.run(partial(inspect, contents))
        return await self._staged_files(contents)

    async def readable(self, files: SourceFiles) -> SourceFiles:
        """The same where workers may read it, but for its weights.

        Raises:
            CheckpointUnreadable: a file cannot be read now.
            InvalidSource: one has become a link out of the source.
        """
        if not isinstance(files.origin, LocalSource):
            return files
        key = (files.origin.url, files.fingerprint)
        return await self._stage(key, partial(_outline, files, self._directory))

    async def _staged_files(self, snapshot: Snapshot) -> SourceFiles:
        key = (snapshot.url, snapshot.fingerprint)
        fetch = partial(_fetch, snapshot, self._threads.closing.is_set)
        return await self._stage(key, partial(_stage, fetch, self._directory))

    async def _stage(self, key: tuple[str, str], make: Callable[[], SourceFiles]) -> SourceFiles:
        """Has them made once, however many ask."""
        task = self._staged.get(key)
        if task is None:
            task = self._staged[key] = asyncio.create_task(self._threads.run(make))
            await self._drop_oldest()
        self._staged.move_to_end(key)
        try:
            return await asyncio.shield(task)
        except SllmError:
            self._staged.pop(key, None)  # whoever asks next tries again
            raise

    async def _drop_oldest(self) -> None:
        while len(self._staged) > _STAGED_SOURCES:
            _, oldest = self._staged.popitem(last=False)
            await self._let_go(oldest)

    async def _let_go(self, staged: "asyncio.Task[SourceFiles]") -> None:
        """Deletes it once nobody reads it any more: whoever does has its `SourceFiles`."""
        (outcome,) = await asyncio.gather(staged, return_exceptions=True)
        if isinstance(outcome, SourceFiles):
            directory = outcome.directory
            self._let_gone.add(directory)
            weakref.finalize(outcome, self._unused, directory).atexit = False

    def _unused(self, directory: Path) -> None:
        """In whatever thread was the last to read it, which may be the event loop's."""
        self._let_gone.discard(directory)
        Thread(target=_delete, args=[directory], name="staged-delete").start()

    async def close(self) -> None:
        """Deletes what was fetched. Nothing may be under way."""
        done = await asyncio.gather(*self._staged.values(), return_exceptions=True)
        fetched = [one.directory for one in done if isinstance(one, SourceFiles)]
        for directory in (*fetched, *self._let_gone):
            await asyncio.to_thread(_delete, directory)
        self._staged.clear()
        await asyncio.to_thread(self._remotes.close)


def _delete(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _fetch(snapshot: Snapshot, cancelled: Callable[[], bool], directory: Path) -> SourceFiles:
    return snapshot.fetch(directory, cancelled)


def _outline(files: SourceFiles, directory: Path) -> SourceFiles:
    def write(into: Path) -> SourceFiles:
        write_outline(files, into)
        return replace(files, directory=into)

    try:
        return _stage(write, directory)
    except OSError as error:
        raise cannot_open(files.directory, error) from error


def _stage(make: Callable[[Path], SourceFiles], directory: Path) -> SourceFiles:
    """Beside the checkpoints, where a start removes what a kill left; or else anywhere."""
    try:
        return _stage_in(directory, STAGED, make)
    except OSError as error:
        _log.info("node.staged_elsewhere", directory=str(directory), problem=str(error))
        return _stage_in(None, "sllm-staged-", make)


def _stage_in(parent: Path | None, prefix: str, make: Callable[[Path], SourceFiles]) -> SourceFiles:
    staged = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        return make(staged)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
