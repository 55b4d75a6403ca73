"""Models on the Hugging Face hub, and in the cache of its client.

The client tells what a repository holds, where its files are and which credentials to send, and
knows the cache; the bytes are read as from any other web server. Environment: HF_TOKEN, HF_HOME,
HF_ENDPOINT, HF_HUB_OFFLINE, and whatever else the client knows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sllm.checkpoint.remote.directories import KNOWN_NAMES
from sllm.checkpoint.remote.failures import cause_of, forbidden
from sllm.checkpoint.remote.listing import Listing, RemoteFile
from sllm.checkpoint.remote.options import RemoteOptions
from sllm.checkpoint.sources.file_names import POOLING_FILE, is_carried
from sllm.checkpoint.sources.remote_urls import HubRepository
from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.errors import (
    CheckpointCorrupt,
    InvalidSource,
    SllmError,
    SourceNotFound,
    SourceUnavailable,
)

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.errors import HfHubHTTPError


@dataclass(frozen=True, slots=True)
class HubCommit:
    """A repository at one commit, or a directory within it."""

    commit: str
    files: tuple[RemoteFile, ...]
    """All that lie right in it, and how a model pools."""
    base_url: str
    """Of these."""
    headers: dict[str, str]
    """To be sent with requests; may be secret."""


def look_up(
    repository: HubRepository, options: RemoteOptions, token: str | None = None
) -> HubCommit | LocalSource:
    """What a repository holds now; or what the cache holds, if the hub cannot be asked.

    Args:
        repository: which one.
        options: bounds.
        token: opens it; None: the one that the environment has.

    Raises:
        SourceNotFound: there is no such repository or revision, or nothing in such a directory.
        SourceForbidden: it is private or gated, and the token does not open it.
        SourceUnavailable: the hub cannot be asked, and the cache does not have it.
        InvalidSource: the name is not one of the hub's.
    """
    from huggingface_hub import constants, get_token, hf_hub_url

    try:
        info = _ask(repository, options, token)
    except SourceUnavailable:
        cached = None if repository.path else _cached_revision(repository)
        if cached is None:
            raise
        return cached
    commit, files = info.sha or "", tuple(_files(info, repository.path))
    if repository.path and not files:
        raise SourceNotFound(f"{repository.url}: the repository holds nothing there")
    token = token or get_token()
    inside = _inside(repository, "x")
    base = hf_hub_url(repository.name, inside, revision=commit, endpoint=constants.ENDPOINT)
    return HubCommit(
        commit=commit,
        files=files,
        base_url=base.removesuffix("/x"),
        headers={"authorization": f"Bearer {token}"} if token else {},
    )


def _ask(repository: HubRepository, options: RemoteOptions, token: str | None) -> "ModelInfo":
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
    )

    try:
        return HfApi().model_info(
            repository.name,
            revision=repository.revision,
            files_metadata=True,
            timeout=options.stall_seconds,
            token=token,
        )
    except HFValidationError as error:
        raise InvalidSource(f"{repository.url}: {cause_of(error)}") from error
    except HfHubHTTPError as error:
        # Its first line is in the message; in a traceback signed URLs would show.
        raise _typed(repository, error) from None
    except OfflineModeIsEnabled as error:
        raise SourceUnavailable(
            f"HF_HUB_OFFLINE is set, and {repository.url} is not whole in the hub's cache"
        ) from error
    except Exception as error:  # those of the HTTP library below, which is not always the same
        raise _unavailable(repository, error) from None


def _typed(repository: HubRepository, error: "HfHubHTTPError") -> SllmError:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError) or error.response.status_code == 403:
        return forbidden(repository.url, cause_of(error))
    if isinstance(error, RevisionNotFoundError):
        return SourceNotFound(f"{repository.url}: the repository has no such revision")
    if isinstance(error, RepositoryNotFoundError) or error.response.status_code == 404:
        return SourceNotFound(
            f"{repository.url} is not on the hub, or is private: check its spelling, or give the "
            "node a token that opens it, as HF_TOKEN"
        )
    return _unavailable(repository, error)


def _unavailable(repository: HubRepository, error: Exception) -> SourceUnavailable:
    return SourceUnavailable(
        f"the hub cannot be asked for {repository.url}: {cause_of(error)}; try again"
    )


def _files(info: "ModelInfo", path: str) -> Iterable[RemoteFile]:
    """Those of a directory. What a commit holds never changes, so no tag is compared."""
    within = f"{path}/" if path else ""
    for file in info.siblings or ():
        name = file.rfilename.removeprefix(within)
        if file.rfilename.startswith(within) and ("/" not in name or name == POOLING_FILE):
            yield RemoteFile(name, file.size or 0, tag=None)


def _inside(repository: HubRepository, name: str) -> str:
    return f"{repository.path}/{name}" if repository.path else name


def cached_commit(repository: HubRepository, commit: str, listing: Listing) -> LocalSource | None:
    """The cache's copy of a commit, if it has what a model is loaded from."""
    from huggingface_hub import try_to_load_from_cache

    directory: Path | None = None
    for file in listing.files:
        if not is_carried(file.name) or file.name in KNOWN_NAMES:
            inside = _inside(repository, file.name)
            cached = try_to_load_from_cache(repository.name, inside, revision=commit)
            if not isinstance(cached, str) or Path(cached).stat().st_size != file.size:
                return None
            directory = Path(cached).parent
    return LocalSource(directory) if directory else None


def _cached_revision(repository: HubRepository) -> LocalSource | None:
    """The cache's copy of what a revision was when it was last asked for, if it is a model."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        directory = snapshot_download(
            repository.name, revision=repository.revision, local_files_only=True
        )
        source = LocalSource(Path(directory))
        inspect(source)
    except (LocalEntryNotFoundError, CheckpointCorrupt, InvalidSource):
        return None
    return source
