import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sllm import checkpoint
from sllm.checkpoint.format.safetensors_header import read_header
from sllm.checkpoint.sources.sources import LocalSource, fingerprint, inspect, parse_source
from sllm.errors import CheckpointCorrupt, InvalidArgument, InvalidSource, SourceNotFound
from tests.checkpoint.checkpoints import random_weights, write_model, write_pooling


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/models/a b", "/models/a b"),
        ("file:///models/a%20b", "/models/a b"),
        ("file://localhost/models", "/models"),
    ],
)
def test_paths_and_file_urls_name_directories(text: str, path: str) -> None:
    assert parse_source(text) == LocalSource(Path(path))


def test_a_source_has_one_url_however_it_is_written() -> None:
    assert parse_source("/models/a b").url == parse_source("file:///models/a%20b").url


@pytest.mark.parametrize("text", ["", "models/x", "ftp://a/b", "file://host/x", "file:x", "/a\0b"])
def test_other_sources_are_refused_with_what_is_supported(text: str) -> None:
    with pytest.raises(InvalidSource, match="file:///path"):
        parse_source(text)


def test_what_a_model_consists_of_is_found(tmp_path: Path) -> None:
    source = write_model(tmp_path)
    for name in ["chat_template.jinja", "merges.txt", "README.md", "x.py", ".hidden.json"]:
        (source / name).write_text("x")
    found = inspect(LocalSource(source))
    names = ["chat_template.jinja", "config.json", "merges.txt", "tokenizer.json"]
    assert [path.name for path in found.files] == names
    assert found.weights == (source / "model.safetensors",)
    assert {tensor.name for tensor in found.tensors} == set(random_weights())
    assert found.size_bytes == sum(tensor.nbytes for tensor in random_weights().values())


def test_how_a_model_pools_lies_in_a_directory_of_its_own(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")
    write_pooling(source)
    before = fingerprint(LocalSource(source))
    files = inspect(LocalSource(source)).files
    assert [str(path.relative_to(source)) for path in files] == [
        "config.json",
        "modules.json",
        "tokenizer.json",
        "1_Pooling/config.json",
    ]
    (source / "1_Pooling" / "config.json").write_text("{}")
    assert fingerprint(LocalSource(source)) != before


def test_how_a_model_pools_leads_nowhere_else(tmp_path: Path) -> None:
    source, other = write_model(tmp_path / "model"), tmp_path / "other"
    write_pooling(source)
    (source / "1_Pooling").rename(other)
    (source / "1_Pooling").symlink_to(other)
    assert not [path for path in inspect(LocalSource(source)).files if "Pooling" in str(path)]
    (source / "1_Pooling").unlink()
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").symlink_to(other / "config.json")
    with pytest.raises(InvalidSource, match="a link out of its directory"):
        inspect(LocalSource(source))


def test_offsets_are_those_of_the_bytes(tmp_path: Path) -> None:
    weights = random_weights()
    content = (write_model(tmp_path, weights) / "model.safetensors").read_bytes()
    for tensor in inspect(LocalSource(tmp_path)).tensors:
        held = content[tensor.offset : tensor.offset + tensor.size]
        assert held == weights[tensor.name].numpy().tobytes()


def write_shards(directory: Path) -> Path:
    write_model(directory)
    (directory / "model.safetensors").unlink()
    save_file({"a": torch.ones(3)}, directory / "model-1.safetensors")
    save_file({"b": torch.ones(4)}, directory / "model-2.safetensors")
    return directory


def write_index(directory: Path, shard_of: object) -> None:
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": shard_of}))


def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    write_shards(tmp_path)
    save_file({"stray": torch.ones(1)}, tmp_path / "consolidated.safetensors")
    write_index(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    assert {tensor.name for tensor in inspect(LocalSource(tmp_path)).tensors} == {"a", "b"}


def test_shards_are_found_without_an_index(tmp_path: Path) -> None:
    write_shards(tmp_path)
    assert {tensor.name for tensor in inspect(LocalSource(tmp_path)).tensors} == {"a", "b"}


def test_shards_that_both_hold_a_tensor_need_an_index(tmp_path: Path) -> None:
    write_shards(tmp_path)
    save_file({"a": torch.ones(3)}, tmp_path / "model-3.safetensors")
    with pytest.raises(InvalidSource, match=r"model-1.safetensors and model-3.safetensors"):
        inspect(LocalSource(tmp_path))


@pytest.mark.parametrize(
    ("shard_of", "named"),
    [
        ({"a": "model-1.safetensors", "b": "model-9.safetensors"}, r"model-9\.safetensors: named"),
        ({"a": "model-2.safetensors"}, r"model-2\.safetensors: has no tensor 'a'"),
        ({"a": 5}, "weight_map"),
        ([1], "weight_map"),
    ],
)
def test_an_index_that_lies_is_corrupt(tmp_path: Path, shard_of: object, named: str) -> None:
    write_index(write_shards(tmp_path), shard_of)
    with pytest.raises(CheckpointCorrupt, match=named):
        inspect(LocalSource(tmp_path))


def test_a_missing_directory_is_not_found(tmp_path: Path) -> None:
    for path in [tmp_path / "none", write_model(tmp_path) / "config.json"]:
        with pytest.raises(SourceNotFound):
            inspect(LocalSource(path))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_directory_without_a_model_is_invalid(tmp_path: Path, missing: str) -> None:
    (write_model(tmp_path) / missing).unlink()
    with pytest.raises(InvalidSource, match=r"config.json|safetensors"):
        inspect(LocalSource(tmp_path))


def test_the_fingerprint_follows_changes(tmp_path: Path) -> None:
    source = LocalSource(write_model(tmp_path))
    seen = {fingerprint(source)}
    (tmp_path / "merges.txt").write_text("x")
    seen.add(fingerprint(source))
    (tmp_path / "merges.txt").write_text("xy")
    seen.add(fingerprint(source))
    assert len(seen) == 3
    (tmp_path / "README.md").write_text("of no interest")
    assert fingerprint(source) in seen


INDEXES: dict[str, bytes] = {
    "nothing": b"",
    "a list": b"[]",
    "no map": b"{}",
    "a map that is null": b'{"weight_map":null}',
    "a map that is a list of pairs": b'{"weight_map":[["a","b"]]}',
    "a map to numbers": b'{"weight_map":{"a":1}}',
    "a name twice": b'{"weight_map":{"a":"x","a":"y"}}',
    "UTF-16": '{"weight_map":{}}'.encode("utf-16"),
    "half of a pair": b'{"weight_map":{"a":"\\ud800"}}',
    "deep": b'{"weight_map":' + b"[" * 100_000,
    "a shard that is missing": b'{"weight_map":{"a":"none.safetensors"}}',
    "a shard elsewhere": b'{"weight_map":{"a":"../model.safetensors"}}',
    "a shard with a long name": b'{"weight_map":{"a":"' + b"x" * 300 + b'"}}',
    "a shard with a null in its name": b'{"weight_map":{"a":"a\\u0000"}}',
}


@pytest.mark.parametrize("content", INDEXES.values(), ids=INDEXES)
def test_an_index_that_is_none_is_corrupt(tmp_path: Path, content: bytes) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointCorrupt) as caught:
        inspect(LocalSource(tmp_path))
    str(caught.value).encode("utf-8")


EMPTY: dict[str, dict[str, bytes]] = {
    "an empty header": {"model.safetensors": b"\2\0\0\0\0\0\0\0{}"},
    "metadata alone": {
        "model.safetensors": b'\x24\0\0\0\0\0\0\0{"__metadata__":{"format":"pt"}}    '
    },
    "an empty map": {
        "model.safetensors.index.json": b'{"weight_map":{}}',
        "one.safetensors": b"\2\0\0\0\0\0\0\0{}",
    },
    "empty shards": {"one.safetensors": b"\2\0\0\0\0\0\0\0{}"},
}


@pytest.mark.parametrize("files", EMPTY.values(), ids=EMPTY)
def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    for name, content in files.items():
        (tmp_path / "model" / name).write_bytes(content)
    uses: list[Callable[[], object]] = [
        lambda: inspect(LocalSource(tmp_path / "model")),
        lambda: checkpoint.load(tmp_path / "model"),
        lambda: checkpoint.open(tmp_path / "model"),
        lambda: checkpoint.inspect(tmp_path / "model"),
        lambda: checkpoint.verify(tmp_path / "model"),
        lambda: checkpoint.pack(tmp_path / "model", tmp_path / "packed"),
    ]
    if "model.safetensors" in files:
        uses.append(lambda: checkpoint.load(tmp_path / "model" / "model.safetensors"))
    for use in uses:
        with pytest.raises(InvalidSource, match="no tensors"):
            use()


def test_nothing_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no tensors"):
        checkpoint.save({}, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def header(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


def tensor(begin: int, end: int, dtype: object = "U8", shape: object = None) -> object:
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "ends within its header"),
    "half a length": (b"\1\0", "ends within its header"),
    "a longer header than the file": ((99).to_bytes(8, "little") + b"{}", "ends within its header"),
    "no JSON": ((2).to_bytes(8, "little") + b"{x", "cannot be parsed"),
    "no object": ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
    "a key twice": ((14).to_bytes(8, "little") + b'{"a":1,"a":12}', "occurs twice"),
    "no offsets": (header(a={"dtype": "U8", "shape": [1]}), "'a'"),
    "a tensor that is none": (header(a=5), "'a'"),
    "an unknown dtype": (header(a=tensor(0, 1, "F3")) + b"x", "unknown dtype"),
    "a wrong size": (header(a=tensor(0, 1, "F32", [1])) + b"x", "takes 4 bytes, not 1"),
    "a negative shape": (header(a=tensor(0, 1, "U8", [-1, -1])) + b"x", ">= 0"),
    "an overlap": (header(a=tensor(0, 4), b=tensor(2, 6)) + bytes(6), "overlaps"),
    "a gap": (header(a=tensor(0, 4), b=tensor(6, 8)) + bytes(8), "gap"),
    "too few bytes": (header(a=tensor(0, 4)) + bytes(3), "its tensors end"),
    "too many bytes": (header(a=tensor(0, 4)) + bytes(5), "its tensors end"),
}


@pytest.mark.parametrize(("content", "problem"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_named_with_its_offset(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=problem) as caught:
        read_header(path)
    assert caught.value.metadata["file"] == str(path)
    assert 0 <= int(caught.value.metadata["offset"]) <= len(content)


def test_any_truncation_is_noticed(tmp_path: Path) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    content = path.read_bytes()
    for size in range(0, len(content), 997):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointCorrupt):
            read_header(path)


def _outside(model: Path, name: str) -> Path:
    secret = model.parent / "secret"
    secret.write_text("{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
    return model


def _chain(model: Path, name: str) -> Path:
    _outside(model, "first.txt")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("first.txt")
    return model


def _fifo(model: Path, name: str) -> Path:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    return model


def _socket(model: Path, name: str) -> Path:
    (model / name).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(model / name))
    return model


def _device(model: Path, name: str) -> Path:
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("/dev/zero")
    return model


def _nowhere(model: Path, name: str) -> Path:
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("gone")
    return model


def _circle(model: Path, name: str) -> Path:
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(name)
    return model


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "chat_template.jinja"])
@pytest.mark.parametrize("place", [_outside, _chain, _fifo, _socket, _device, _nowhere, _circle])
def test_what_leads_out_or_is_no_file_is_refused(
    tmp_path: Path, place: Callable[[Path, str], Path], name: str
) -> None:
    source = LocalSource(place(write_model(tmp_path / "m"), name))
    for look in (fingerprint, inspect):
        with pytest.raises(InvalidSource, match=r"link|plain file"):
            look(source)


@pytest.mark.parametrize("name", ["config.json", "corpus.txt", "model.safetensors.index.json"])
def test_no_file_beside_the_weights_fills_the_memory(tmp_path: Path, name: str) -> None:
    """It would be read as a whole; a hole in it takes no disk."""
    with (write_model(tmp_path / "m") / name).open("ab") as file:
        file.truncate(1 << 40)
    for look in (fingerprint, inspect):
        with pytest.raises(InvalidSource, match=f"{name} has {1 << 40} bytes"):
            look(LocalSource(tmp_path / "m"))


def test_a_packed_one_may_name_no_link_either(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    (model / "notes.txt").write_text("{}")
    checkpoint.pack(model, tmp_path / "packed")
    for name in ("notes.txt", "partition-00000.bin"):
        (tmp_path / "packed" / name).rename(tmp_path / name)
        (tmp_path / "packed" / name).symlink_to(tmp_path / name)
        with pytest.raises(InvalidSource, match="link"):
            inspect(LocalSource(tmp_path / "packed"))
        (tmp_path / "packed" / name).unlink()
        (tmp_path / name).rename(tmp_path / "packed" / name)
    assert inspect(LocalSource(tmp_path / "packed")).packed


def test_links_within_and_to_the_caches_blobs_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--tiny"
    snapshot = write_model(repository / "snapshots" / "abc")
    (repository / "blobs").mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(repository / "blobs" / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    (snapshot / "vocab.json").symlink_to("tokenizer.json")
    assert inspect(LocalSource(snapshot)).tensors
    (tmp_path / "shortcut").symlink_to(snapshot)
    assert inspect(LocalSource(tmp_path / "shortcut")).tensors


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "loop"])
def test_a_path_that_can_lead_nowhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for look in (fingerprint, inspect):
        with pytest.raises(InvalidSource, match="cannot be read") as caught:
            look(LocalSource(tmp_path / name))
        assert len(str(caught.value)) < 1000
