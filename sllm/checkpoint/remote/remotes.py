"""All remote sources of a process."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from sllm.checkpoint.remote import hub
from sllm.checkpoint.remote.background_loop import BackgroundLoop
from sllm.checkpoint.remote.directories import find_on_web, list_objects, of_model
from sllm.checkpoint.remote.objects import Objects
from sllm.checkpoint.remote.options import RemoteOptions
from sllm.checkpoint.remote.public_addresses import PublicProxy, check_public
from sllm.checkpoint.remote.snapshot import Snapshot
from sllm.checkpoint.remote.stores import open_store, open_web
from sllm.checkpoint.sources.policy import EVERYTHING, WEB, SourcePolicy
from sllm.checkpoint.sources.remote_urls import HubRepository, RemoteDirectory
from sllm.checkpoint.sources.sources import LocalSource


def _never() -> bool:
    return False


def _environments_proxy(scheme: str) -> str | None:
    proxies = getproxies()
    found = proxies.get(scheme) or proxies.get("all")
    return f"http://{found}" if found and "://" not in found else found


@dataclass(frozen=True, slots=True)
class Sighting:
    """A source as it was found."""

    fingerprint: str
    """Names the state of its files."""
    contents: Snapshot | LocalSource
    """Where to read them: a directory of this machine, if the hub's cache has them."""


class Remotes:
    """Looks at remote sources. For any number of threads, which wait for the network."""

    def __init__(
        self, options: RemoteOptions | None = None, policy: SourcePolicy = EVERYTHING
    ) -> None:
        """Connects to nothing yet.

        Args:
            options: bounds; None: the usual ones.
            policy: what may be read, and what opens it.
        """
        self._options = options or RemoteOptions()
        self._policy = policy
        self._loop = BackgroundLoop()
        self._proxy: PublicProxy | None = None
        self._lock = threading.Lock()

    def look(
        self, source: RemoteDirectory | HubRepository, cancelled: Callable[[], bool] = _never
    ) -> Sighting:
        """A source as it is now. Reads sizes and tags, and hardly any content.

        Args:
            source: which one.
            cancelled: asked now and then whether to give up.

        Raises:
            Cancelled: `cancelled` said so.
            SourceNotAllowed: it may not be read.
            SourceNotFound: there is nothing there.
            SourceForbidden: other credentials are needed.
            SourceUnavailable: it cannot be had now.
            InvalidSource: it cannot be read at all.
        """
        if isinstance(source, HubRepository):
            return self._look_on_hub(source, cancelled)
        return self._look_into(source, cancelled)

    def _look_into(self, source: RemoteDirectory, cancelled: Callable[[], bool]) -> Sighting:
        access, proxy = self._policy.access(source), self._proxy_for(source)
        store = open_store(source, self._options, access, proxy)
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

    def _look_on_hub(self, source: HubRepository, cancelled: Callable[[], bool]) -> Sighting:
        token = self._policy.access(source).secret("token")
        found = hub.look_up(source, self._options, token)
        if isinstance(found, LocalSource):
            return Sighting(found.directory.name, found)  # the cache names it by its commit
        store = open_web(found.base_url, self._options, found.headers)
        objects = Objects(source.url, store, self._options.concurrency)
        listing = self._loop.run(of_model(objects, found.files), cancelled)
        if cached := hub.cached_commit(source, found.commit, listing):
            return Sighting(found.commit, cached)
        snapshot = Snapshot(
            url=source.url,
            fingerprint=found.commit,
            listing=listing,
            objects=objects,
            loop=self._loop,
            look_again=lambda: found.commit,  # a commit never changes
        )
        return Sighting(found.commit, snapshot)

    def _proxy_for(self, source: RemoteDirectory) -> str | None:
        """The way to a web server that a caller has named: to public addresses alone.

        Other services are where the operator's environment says. So is a proxy in it, which then
        decides for itself what it connects to. It is named to the library, which would otherwise
        follow a redirect past it: to another scheme, or to what no_proxy names.
        """
        parts = urlsplit(source.url)
        if source.scheme not in WEB or self._policy.private_addresses or not parts.hostname:
            return None
        port = parts.port or (443 if source.scheme == "https" else 80)
        check_public(parts.hostname, port, self._policy.may_be_private)
        if (proxy := _environments_proxy(source.scheme)) and not proxy_bypass(parts.netloc):
            return proxy
        with self._lock:
            self._proxy = self._proxy or PublicProxy(self._policy.may_be_private)
        return self._proxy.url

    def _fingerprint(self, source: RemoteDirectory) -> str:
        return self._look_into(source, _never).fingerprint

    def close(self) -> None:
        """Ends the threads that wait for the network. Nothing may be under way."""
        self._loop.close()
        if self._proxy:
            self._proxy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
