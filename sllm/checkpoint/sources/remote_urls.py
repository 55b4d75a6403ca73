"""Remote sources by their URLs."""

import re
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import SplitResult, urlsplit

from sllm.bounds import without_secrets
from sllm.errors import InvalidSource

OBJECT_SCHEMES = ("s3", "gs", "az", "http", "https")
HUB_SCHEME = "hf"
SCHEMES = (*OBJECT_SCHEMES, HUB_SCHEME)

_REPOSITORY = re.compile(r"hf://([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?/?")


@dataclass(frozen=True, slots=True)
class RemoteDirectory:
    """A directory of an object store or of a web server."""

    scheme: str
    host: str
    """The bucket or container; of a web server, host and port."""
    path: str
    """The keys' common prefix, without slashes at its ends; may be empty."""

    @property
    def url(self) -> str:
        """The same for every way to write the source; without secrets."""
        return f"{self.scheme}://{self.host}/{self.path}".rstrip("/")

    def directory(self, path: str) -> Self:
        """A directory within it."""
        return replace(self, path=f"{self.path}/{path}".lstrip("/"))


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A model's repository on the Hugging Face hub."""

    name: str
    """With the organisation, if it has one."""
    revision: str | None
    """Branch, tag or commit; None: the main branch."""
    path: str = ""
    """Of a directory within it, which no URL that callers write names. Empty: the repository's."""

    @property
    def url(self) -> str:
        """The same for every way to write the source."""
        at = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.name}{at}/{self.path}".rstrip("/")

    def directory(self, path: str) -> Self:
        """A directory within it."""
        return replace(self, path=f"{self.path}/{path}".lstrip("/"))


def parse_remote(text: str) -> RemoteDirectory | HubRepository:
    """The remote source that a URL names.

    Raises:
        InvalidSource: it is not one that can be read. The message repeats no secrets.
    """
    parts = urlsplit(text)
    if parts.scheme == HUB_SCHEME:
        return _parse_hub(text)
    _check(parts)
    return RemoteDirectory(parts.scheme, parts.netloc, parts.path.strip("/"))


def _parse_hub(text: str) -> HubRepository:
    match = _REPOSITORY.fullmatch(text)
    if match is None:
        raise InvalidSource(
            f"{without_secrets(text)!r} is not a model on the hub: write hf://ORGANISATION/MODEL, "
            "with @REVISION behind it for a branch, tag or commit"
        )
    return HubRepository(match[1], match[2])


def _check(parts: SplitResult) -> None:
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if "@" in parts.netloc:
        raise InvalidSource(
            f"the source {shown} was given with a user's name or password: leave them out; "
            "credentials belong in the node's environment, or in files that its --sources names"
        )
    if parts.query or parts.fragment:
        raise InvalidSource(
            f"the source {shown} was given with something behind ? or #: give the URL of the "
            "directory alone"
        )
    if not parts.netloc:
        raise InvalidSource(f"the source {shown} names no bucket or host")
