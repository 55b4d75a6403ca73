"""Files that become links while a source is looked at: none is read that lies elsewhere."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sllm.checkpoint.format.plain_files import read_plain
from sllm.checkpoint.format.room import Room
from sllm.checkpoint.reading.chunk_reader import open_file
from sllm.checkpoint.sources.identity import identify
from sllm.checkpoint.sources.local_reader import LocalReader
from sllm.checkpoint.sources.outline import write_outline
from sllm.checkpoint.sources.policy import SourcePolicy, SourceRule
from sllm.checkpoint.sources.sources import LocalSource, find, inspect
from sllm.errors import InvalidSource, SllmError, SourceNotAllowed
from tests.checkpoint.checkpoints import write_model

SECRET = b"s3cr3t"
READS = 300


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "models" / "one")
    return tmp_path / "models" / "one"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A model that callers may not read."""
    write_model(tmp_path / "private")
    (tmp_path / "private" / "config.json").write_bytes(b'{"key": "' + SECRET + b'"}')
    return tmp_path / "private"


@pytest.fixture
def policy(model: Path) -> SourcePolicy:
    return SourcePolicy((SourceRule("file", "", model.parent.parts),))


def admitted(policy: SourcePolicy, model: Path) -> LocalSource:
    source = policy.admit(LocalSource(model))
    assert isinstance(source, LocalSource)
    return source


def test_what_has_grown_since_the_look_is_not_read_into_memory(model: Path) -> None:
    with (model / "config.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidSource, match="are read at most"):
        read_plain(model / "config.json", Room.of(model))


def replace_by_link(path: Path, target: Path) -> None:
    path.rename(path.with_name("aside"))
    path.symlink_to(target)


@contextmanager
def racing(path: Path, target: Path) -> Iterator[None]:
    """What is at a path is a link elsewhere half of the time."""
    aside, link = path.with_name(f"{path.name}.aside"), path.with_name(f"{path.name}.link")
    ends = threading.Event()

    def swap() -> None:
        while not ends.is_set():
            link.symlink_to(target)
            path.rename(aside)
            link.rename(path)
            path.unlink()
            aside.rename(path)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        yield
    finally:
        ends.set()
        swapping.join()


def test_a_file_that_became_a_link_is_not_read(
    policy: SourcePolicy, model: Path, secret: Path
) -> None:
    source = admitted(policy, model)
    files = inspect(source)
    replace_by_link(model / "config.json", secret / "config.json")
    for read in (
        lambda: read_plain(model / "config.json", files.room),
        lambda: open_file(model / "config.json", files.room),
        lambda: LocalReader([model / "config.json"], source.settled).__enter__(),
        lambda: identify(source, files.fingerprint),
    ):
        with pytest.raises(InvalidSource, match="out of its directory"):
            read()


def test_a_directory_that_became_a_link_is_not_read(
    policy: SourcePolicy, model: Path, secret: Path, tmp_path: Path
) -> None:
    source = admitted(policy, model)
    files = inspect(source)
    replace_by_link(model, secret)
    (tmp_path / "outline").mkdir()
    with pytest.raises(InvalidSource, match="out of its directory"):
        inspect(source)
    with pytest.raises(InvalidSource, match="out of its directory"):
        write_outline(files, tmp_path / "outline")
    with (
        pytest.raises(InvalidSource, match="out of its directory"),
        files.origin.open(files.weights, lambda: False),
    ):
        pass
    with pytest.raises(SourceNotAllowed):
        policy.admit(LocalSource(model))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_that_became_another_users_is_not_read(
    policy: SourcePolicy, model: Path, secret: Path
) -> None:
    files = inspect(admitted(policy, model))
    os.chown(secret / "config.json", 12345, 12345)
    (model / "config.json").unlink()
    (model / "config.json").hardlink_to(secret / "config.json")
    with pytest.raises(InvalidSource, match="another user"):
        read_plain(model / "config.json", files.room)


def test_links_within_a_source_and_to_it_are_read(model: Path, tmp_path: Path) -> None:
    (model / "config.json").rename(model / "real-config")
    (model / "config.json").symlink_to("real-config")
    (tmp_path / "latest").symlink_to(model)
    assert find(LocalSource(tmp_path / "latest")).size_bytes == find(LocalSource(model)).size_bytes


def test_the_hubs_cache_has_blobs_beside_its_snapshots(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    write_model(snapshot)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (snapshot / "config.json").rename(blobs / "blob")
    (snapshot / "config.json").symlink_to("../../blobs/blob")
    assert inspect(LocalSource(snapshot)).files
    assert Room.of(snapshot).holds(blobs / "blob")
    assert not Room.of(tmp_path).holds(Path("/etc/passwd"))


@pytest.mark.parametrize("swaps", ["file", "directory"])
def test_whoever_swaps_files_while_they_are_read_has_none_of_others_read(
    policy: SourcePolicy, model: Path, secret: Path, swaps: str
) -> None:
    files = inspect(admitted(policy, model))
    path = model / "config.json"
    swapped, target = (path, secret / path.name) if swaps == "file" else (model, secret)
    seen = set()
    with racing(swapped, target):
        for _ in range(READS):
            with suppress(OSError, SllmError):
                seen.add(read_plain(path, files.room))
    assert not [content for content in seen if SECRET in content]
    assert SECRET not in read_plain(path, files.room)
