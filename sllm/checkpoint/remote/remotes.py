"""All remote sources of a process."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from sllm.checkpoint.remote import hub
from sllm.checkpoint.remote.background_loop import BackgroundLoop
from sllm.checkpoint.remote.directories import find_on_web, list_objects
from sllm.checkpoint.remote.objects import Objects
from sllm.checkpoint.remote.options import RemoteOptions
from sllm.checkpoint.remote.snapshot import Snapshot
from sllm.checkpoint.remote.stores import open_store, open_web
from sllm.checkpoint.sources.remote_urls import HubRepository, RemoteDirectory
from sllm.checkpoint.sources.sources import LocalSource


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Sighting:
    """A source as it was found."""

    fingerprint: str
    """Names the state of its files."""
    contents: Snapshot | LocalSource
    """Where to read them: a directory of this machine, if the hub's cache has them."""


class Remotes:
    """Looks at remote sources. For any number of threads, which wait for the network."""

    def __init__(self, options: RemoteOptions | None = None) -> None:
        """Connects to nothing yet."""
        self._options = options or RemoteOptions()
        self._loop = BackgroundLoop()

    def look(
        self, source: RemoteDirectory | HubRepository, cancelled: Callable[[], bool] = _never
    ) -> Sighting:
        """A source as it is now. Reads sizes and tags, and hardly any content.

        Args:
            source: which one.
            cancelled: asked now and then whether to give up.

        Raises:
            Cancelled: `cancelled` said so.
            SourceNotFound: there is nothing there.
            SourceForbidden: other credentials are needed.
            SourceUnavailable: it cannot be had now.
            InvalidSource: it cannot be read at all.
        """
        if isinstance(source, HubRepository):
            return self._look_on_hub(source)
        return self._look_into(source, cancelled)

    def _look_into(self, source: RemoteDirectory, cancelled: Callable[[], bool]) -> Sighting:
        store = open_store(source, self._options)
        objects = Objects(source.url, store, self._options.concurrency)
        find = find_on_web if source.scheme in ("http", "https") else list_objects
        listing = self._loop.run(find(objects), cancelled)
        snapshot = Snapshot(
            url=source.url,
            fingerprint=listing.digest(),
            listing=listing,
            objects=objects,
            loop=self._loop,
            look_again=partial(self._fingerprint, source),
        )
        return Sighting(snapshot.fingerprint, snapshot)

    def _look_on_hub(self, source: HubRepository) -> Sighting:
        found = hub.look_up(source, self._options)
        if isinstance(found, LocalSource):
            return Sighting(found.directory.name, found)  # the cache names it by its commit
        if found.cached is not None:
            return Sighting(found.commit, found.cached)
        store = open_web(found.base_url, self._options, found.headers)
        snapshot = Snapshot(
            url=source.url,
            fingerprint=found.commit,
            listing=found.listing,
            objects=Objects(source.url, store, self._options.concurrency),
            loop=self._loop,
            look_again=lambda: found.commit,  # a commit never changes
        )
        return Sighting(found.commit, snapshot)

    def _fingerprint(self, source: RemoteDirectory) -> str:
        return self._look_into(source, _never).fingerprint

    def close(self) -> None:
        """Ends the thread that waits for the network. Nothing may be under way."""
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
