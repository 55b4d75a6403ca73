"""Models that are served on loopback, and what is brought from there."""

from dataclasses import dataclass
from pathlib import Path

from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.importing.import_plan import plan_import
from sllm.checkpoint.remote.options import RemoteOptions
from sllm.checkpoint.remote.remotes import Remotes
from sllm.checkpoint.remote.snapshot import Snapshot
from sllm.checkpoint.sources.sources import LocalSource, SourceFiles, inspect, parse_source
from tests.checkpoint.plans import never, run_import

HASTY = RemoteOptions(
    connect_seconds=2.0,
    stall_seconds=0.5,
    request_seconds=10.0,
    retries=3,
    retry_seconds=4.0,
    backoff_seconds=0.2,
)
"""Bounds that tests can wait for."""


@dataclass(frozen=True, slots=True)
class Brought:
    """A checkpoint that was brought from a source."""

    manifest: Manifest
    directory: Path


def files_of(remotes: Remotes, url: str, staging: Path) -> SourceFiles:
    """What a source consists of."""
    place = parse_source(url)
    assert not isinstance(place, LocalSource)
    contents = remotes.look(place).contents
    if not isinstance(contents, Snapshot):
        return inspect(contents)
    staging.mkdir(parents=True)
    return contents.fetch(staging, never)


def bring(url: str, directory: Path, dtype: str | None = None) -> Brought:
    """Imports what a URL names."""
    directory.mkdir(parents=True, exist_ok=True)
    with Remotes(HASTY) as remotes:
        files = files_of(remotes, url, directory / "staging")
        manifest = run_import(plan_import(files, dtype), directory / "out")
    return Brought(manifest, directory / "out")
