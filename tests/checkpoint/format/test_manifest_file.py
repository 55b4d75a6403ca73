import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from sllm.checkpoint.format.manifest import (
    FileEntry,
    Manifest,
    PartitionEntry,
    TensorEntry,
    content_digest,
    make_manifest,
)
from sllm.checkpoint.format.manifest_file import MANIFEST_FILE, read_manifest, write_manifest
from sllm.checkpoint.reading.tensors import tensors_over
from sllm.errors import CheckpointCorrupt, InvalidSource, UnsupportedModel
from tests.properties import examples

DIGEST = "0123456789abcdef" * 2


def example() -> Manifest:
    tensors = [
        TensorEntry("embed.weight", "F32", (10, 10), 0, 0, 400),
        TensorEntry("lm_head.weight", "F32", (10, 10), 0, 0, 400),
        TensorEntry("empty", "BF16", (0, 5), 0, 448, 0),
        TensorEntry("scalar", "I64", (), 0, 448, 8),
        TensorEntry("tiny", "F4", (3, 2), 1, 0, 3),
    ]
    partitions = [
        PartitionEntry("partition-00000.bin", 12288, 8192, (DIGEST, DIGEST)),
        PartitionEntry("partition-00001.bin", 4096, 8192, (DIGEST,)),
    ]
    return make_manifest(tensors, partitions, [FileEntry("config.json", 2, DIGEST)])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_manifest(tmp_path, example())
    (tmp_path / "partition-00000.bin").write_bytes(bytes(12288))
    (tmp_path / "partition-00001.bin").write_bytes(bytes(4096))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def rewrite(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / MANIFEST_FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_was_written_is_read(directory: Path) -> None:
    manifest = read_manifest(directory)
    assert manifest == example()
    assert manifest.size_bytes == 16384
    assert manifest.disk_bytes == 16386


def test_the_digest_names_the_content() -> None:
    manifest = example()
    again = make_manifest(manifest.tensors, manifest.partitions, manifest.files)
    assert manifest.digest == again.digest
    other = replace(manifest.tensors[0], name="other")
    parts = manifest.partitions, manifest.files
    assert content_digest([other, *manifest.tensors[1:]], *parts) != manifest.digest


def test_keys_of_later_versions_are_ignored(directory: Path) -> None:
    def extend(content: dict[str, Any]) -> None:
        content["author"] = "later"
        content["tensors"][0]["compression"] = None

    rewrite(directory, extend)
    assert read_manifest(directory) == example()


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda c: c.update(format="other"), "not a manifest"),
    "no tensors": (lambda c: c.pop("tensors"), "'tensors' is missing"),
    "tensors of another type": (lambda c: c.update(tensors={}), "expected a list"),
    "a negative size": (lambda c: c["tensors"][0].update(size=-1), "expected a number"),
    "a truth for a number": (lambda c: c["tensors"][0].update(offset=True), "expected a number"),
    "a wrong size": (lambda c: c["tensors"][0].update(size=404), "takes 400 bytes, not 404"),
    "an unknown dtype": (lambda c: c["tensors"][0].update(dtype="F3"), "unknown dtype"),
    "half a byte": (lambda c: c["tensors"][4].update(shape=[3]), "whole bytes"),
    "no alignment": (lambda c: c["tensors"][3].update(offset=456), "not aligned"),
    "past the end": (lambda c: c["tensors"][3].update(offset=12288), "ends after"),
    "no such partition": (lambda c: c["tensors"][3].update(partition=2), "not there"),
    "an overlap": (lambda c: c["tensors"][3].update(offset=64), "overlap"),
    "a name twice": (lambda c: c["tensors"][3].update(name="tiny"), "listed twice"),
    "a digest missing": (lambda c: c["partitions"][0]["digests"].pop(), "digests for"),
    "a digest that is none": (lambda c: c.update(digest="abc"), "digest"),
    "another digest": (lambda c: c.update(digest="f" * 32), "has the digest"),
    "no whole blocks": (lambda c: c["partitions"][0].update(size=1000), "multiples"),
    "no chunks": (lambda c: c["partitions"][0].update(chunk_size=0), "multiples"),
    "a file elsewhere": (lambda c: c["partitions"][0].update(file="../x"), "not a name"),
    "a small file elsewhere": (lambda c: c["files"][0].update(name="../x"), "not a name"),
}


@pytest.mark.parametrize(("change", "problem"), CHANGES.values(), ids=CHANGES.keys())
def test_a_manifest_that_contradicts_itself_is_corrupt(
    directory: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    rewrite(directory, change)
    with pytest.raises(CheckpointCorrupt, match=problem) as caught:
        read_manifest(directory)
    assert caught.value.metadata["file"] == str(directory / MANIFEST_FILE)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_none_is_corrupt(directory: Path, content: bytes) -> None:
    (directory / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=MANIFEST_FILE):
        read_manifest(directory)


@pytest.mark.parametrize("name", [MANIFEST_FILE, "partition-00001.bin", "config.json"])
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(CheckpointCorrupt, match=f"{name}: missing"):
        read_manifest(directory)


def test_a_file_cut_short_is_named_with_the_offset(directory: Path) -> None:
    (directory / "partition-00000.bin").write_bytes(bytes(5000))
    with pytest.raises(CheckpointCorrupt) as caught:
        read_manifest(directory)
    path = str(directory / "partition-00000.bin")
    assert caught.value.metadata == {"file": path, "offset": "5000"}


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 4096, 2**31, 2**62, 2**63, 2**64, 10**30, 0.5, 1e300]),
    st.text(max_size=3),
    st.sampled_from(["a" * 300, "a\0b", "\ud800", "..", "config.json", "partition-00000.bin"]),
    st.lists(st.sampled_from([0, 2**62, 4, "x", None]), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@examples(300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_manifest_says_it_is_read_or_refused(
    directory: Path, data: st.DataObject
) -> None:
    """The digest is made to fit, so that what comes behind its check is reached as well."""
    write_manifest(directory, example())
    content = json.loads((directory / MANIFEST_FILE).read_bytes())
    place: Any = content[data.draw(st.sampled_from(["tensors", "partitions", "files"]))]
    entry = data.draw(st.sampled_from(place))
    if data.draw(st.booleans()):
        entry[data.draw(st.sampled_from(list(entry)))] = data.draw(ODD)
    else:
        place[data.draw(st.integers(0, len(place) - 1))] = data.draw(ODD)
    _sign(content)
    (directory / MANIFEST_FILE).write_text(json.dumps(content))
    buffers = [memoryview(bytearray(12288)), memoryview(bytearray(4096))]
    try:
        tensors_over(read_manifest(directory).tensors, buffers)
    except (CheckpointCorrupt, InvalidSource, UnsupportedModel) as error:
        str(error).encode("utf-8")


def _sign(content: dict[str, Any]) -> None:
    parts = {key: content[key] for key in ("tensors", "partitions", "files")}
    with contextlib.suppress(TypeError, KeyError):  # files that have no names are in no order
        parts["files"] = sorted(parts["files"], key=lambda file: file["name"])
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    content["digest"] = xxhash.xxh3_128_hexdigest(canonical.encode())


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"format":"sllm-checkpoint","version":1,"x":%s%s}' % (b"[" * 500, b"]" * 500),
        "{}".encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b'{"format":"sllm-checkpoint","version":' + b"9" * 5000 + b"}",
    ],
    ids=["nothing but brackets", "deep", "UTF-16", "a byte order mark", "many digits"],
)
def test_what_python_would_read_or_stumble_over_is_corrupt(directory: Path, content: bytes) -> None:
    (directory / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=MANIFEST_FILE):
        read_manifest(directory)


def test_a_manifest_without_tensors_is_refused(directory: Path) -> None:
    manifest = example()
    write_manifest(directory, make_manifest([], manifest.partitions, manifest.files))
    with pytest.raises(InvalidSource, match="no tensors"):
        read_manifest(directory)
