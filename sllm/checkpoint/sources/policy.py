"""Which sources may be read, and what opens them: what a node's operator says, and no caller.

A caller names a source by its URL. Where the operator has listed sources, all others are refused.
Where not, all may be read that the node can read, but for web servers at private addresses: callers
could have the node ask what only its own network may, such as a cloud's metadata.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from sllm.checkpoint.format.form import FORMS_DIRECTORY
from sllm.checkpoint.format.room import Room
from sllm.checkpoint.sources.directory import list_statuses, real
from sllm.checkpoint.sources.remote_urls import HubRepository, RemoteDirectory
from sllm.checkpoint.sources.sources import LocalSource
from sllm.errors import SourceNotAllowed, SourceUnavailable

WEB: Final = ("http", "https")
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_HOST_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_:[]")
"""All that libraries agree on: of others one may see the host where another sees the path."""

Place = LocalSource | RemoteDirectory | HubRepository


@dataclass(frozen=True, slots=True)
class Access:
    """What a source is opened with, beside what the node's environment has."""

    secrets: Mapping[str, Path] = field(default_factory=dict)
    """By name: the files that hold them. They are read for each use, so they may be replaced."""
    options: Mapping[str, str] = field(default_factory=dict)
    """By name: what is no secret, such as an endpoint."""

    def secret(self, name: str) -> str | None:
        """A secret's value. None: there is none of this name.

        Raises:
            SourceUnavailable: Its file cannot be read.
        """
        if (path := self.secrets.get(name)) is None:
            return None
        try:
            return path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SourceUnavailable(f"the {name} in {path} cannot be read: {why}") from error


@dataclass(frozen=True, slots=True)
class SourceRule:
    """Sources that may be read: all that begin with one URL."""

    scheme: str
    host: str
    """Host and port, bucket or container, or organisation of the hub; "*" for any, "*.domain" for
    all within a domain; empty for directories of the node."""
    path: tuple[str, ...]
    """What the path begins with, part by part."""
    access: Access = Access()

    def allows(self, place: Place) -> bool:
        """Whether a source is one of them."""
        scheme, host, path = _parts(place)
        own = real(Path(*self.path)).parts if self.scheme == "file" else self.path
        same_host = host == self.host or self.host == "*" or _is_within(host, self.host)
        return scheme == self.scheme and same_host and path[: len(own)] == own


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    """What may be read. Pure but for directories of the node, whose links it follows."""

    rules: tuple[SourceRule, ...] | None = None
    """Sources that may be read, and no others. None: all may."""
    private_addresses: bool = False
    """Whether web servers may be at private addresses that no rule names."""

    def admit(self, place: Place) -> Place:
        """What may be read: a directory from now on where its links lead at this moment.

        Raises:
            SourceNotAllowed: It is none of what is listed, or not written plainly.
            SourceNotFound, InvalidSource, SourceUnavailable: It is a directory that cannot be read.
        """
        if not isinstance(place, LocalSource):
            self._rule(place)
            return place
        settled = replace(place, room=Room.of(place.directory))
        rule = self._rule(settled)
        return _check_owners(settled, Path(*rule.path)) if rule else settled

    def access(self, place: Place) -> Access:
        """What a source is opened with.

        Raises:
            SourceNotAllowed: As `check`.
        """
        rule = self._rule(place)
        return rule.access if rule else Access()

    def may_be_private(self, host: str) -> bool:
        """Whether a web server's host may have a private address: if it is allowed by its name."""
        named = (urlsplit(f"//{one.host}") for one in self.rules or () if one.scheme in WEB)
        return self.private_addresses or any(one.hostname == host for one in named)

    def _rule(self, place: Place) -> SourceRule | None:
        if isinstance(place, RemoteDirectory):
            _check_plain(place)
        if self.rules is None:
            return None
        for rule in self.rules:
            if rule.allows(place):
                return rule
        raise SourceNotAllowed(
            f"{place.url} is none of the sources that may be read here; the cluster's operator "
            "lists them (sllm node --sources)",
            metadata={"source": place.url},
        )


EVERYTHING: Final = SourcePolicy(private_addresses=True)
"""For a library's callers, who could read it themselves."""


def _parts(place: Place) -> tuple[str, str, tuple[str, ...]]:
    if isinstance(place, LocalSource):
        return "file", "", place.settled.directories[0].parts
    if isinstance(place, HubRepository):
        organisation, *model = place.name.split("/")
        return "hf", organisation, tuple(model)
    host = place.host.lower().removesuffix(_DEFAULT_PORTS.get(place.scheme, "\0"))
    return place.scheme, host, tuple(part for part in place.path.split("/") if part)


def _is_within(host: str, pattern: str) -> bool:
    return pattern.startswith("*.") and host.endswith(pattern[1:])


def _check_plain(place: RemoteDirectory) -> None:
    """Refuses what a server, or a library on the way, would take for another URL."""
    path = unquote(unquote(place.path))
    odd_host = not _HOST_CHARACTERS.issuperset(place.host.lower())
    if odd_host or "\\" in path or {".", ".."} & set(path.split("/")):
        raise SourceNotAllowed(
            f"{place.url} is not read: write its host and path plainly, without \\, . or ..",
            metadata={"source": place.url},
        )


def _check_owners(place: LocalSource, root: Path) -> LocalSource:
    """Settles whose files are read: the root's owner's, the node's user's and the system's alone.

    A hard link to another's file would otherwise be read as the node's user, who may read more.
    """
    found = list_statuses(place.directory)
    for form in place.directory.glob(f"{FORMS_DIRECTORY}/*"):  # what is read beside them
        found += list_statuses(form) if form.is_dir() else []
    trusted = frozenset({0, os.geteuid(), root.stat().st_uid})
    for path, status in found:
        if status.st_uid not in trusted:
            raise SourceNotAllowed(
                f"{path} belongs to another user than {root}, where sources may lie, or the node: "
                "have it be one of them that owns it",
                metadata={"source": place.url},
            )
    return replace(place, room=replace(place.settled, owners=trusted))
