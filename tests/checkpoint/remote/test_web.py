"""Models on web servers that do what they should."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sllm.checkpoint.importing.packing import pack
from sllm.checkpoint.sources.adapters import is_adapter
from sllm.errors import CheckpointCorrupt, InvalidSource, SourceNotFound
from tests.checkpoint import checkpoints
from tests.checkpoint.checkpoints import (
    assert_pooling,
    assert_same,
    import_model,
    random_weights,
    tensors_on_disk,
    write_model,
    write_pooling,
)
from tests.checkpoint.plans import CHUNK
from tests.checkpoint.remote.sources import bring
from tests.checkpoint.remote.web import WebServer


def sharded(directory: Path) -> None:
    write_model(directory)
    (directory / "model.safetensors").unlink()
    names = sorted(random_weights())
    shards = {"model-1.safetensors": names[:2], "model-2.safetensors": names[2:]}
    for shard, held in shards.items():
        save_file({name: random_weights()[name] for name in held}, directory / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_model_comes_as_from_a_directory(
    web_server: WebServer, tmp_path: Path, dtype: str | None
) -> None:
    local = write_model(web_server.root / "models" / "tiny")
    brought = bring(f"{web_server.url}/models/tiny/", tmp_path, dtype)
    assert brought.manifest == import_model(local, tmp_path / "local", dtype)
    assert (brought.directory / "tokenizer.json").read_bytes() == (
        local / "tokenizer.json"
    ).read_bytes()


def test_how_a_model_pools_comes_along(web_server: WebServer, tmp_path: Path) -> None:
    write_pooling(write_model(web_server.root))
    brought = bring(web_server.url, tmp_path)
    assert_pooling(brought.manifest, brought.directory)


def test_an_adapter_comes_with_its_settings(web_server: WebServer, tmp_path: Path) -> None:
    weights = {"base_model.model.layer.lora_A.weight": torch.ones(2, 3)}
    save_file(weights, web_server.root / "adapter_model.safetensors")
    (web_server.root / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    brought = bring(web_server.url, tmp_path)
    assert_same(tensors_on_disk(brought.manifest, brought.directory), weights)
    assert is_adapter(brought.directory, weights)


def test_shards_are_found_by_their_index(web_server: WebServer, tmp_path: Path) -> None:
    sharded(web_server.root)
    brought = bring(web_server.url, tmp_path)
    assert_same(tensors_on_disk(brought.manifest, brought.directory), random_weights())


@pytest.mark.parametrize("count", [3, 3000], ids=["large", "header_large"])
def test_files_and_headers_may_be_large(web_server: WebServer, tmp_path: Path, count: int) -> None:
    weights = {
        f"some.rather.long.name.{i}": torch.full((300_000 // count,), i) for i in range(count)
    }
    write_model(web_server.root, weights)
    brought = bring(web_server.url, tmp_path)
    assert_same(tensors_on_disk(brought.manifest, brought.directory), weights)


def test_weights_are_asked_for_once(web_server: WebServer, tmp_path: Path) -> None:
    weights = write_model(web_server.root) / "model.safetensors"
    size = weights.stat().st_size
    bring(web_server.url, tmp_path)
    ranges = [hit for hit in web_server.hits if hit.name == weights.name and hit.method == "GET"]
    assert all("Range" in hit.headers for hit in ranges)
    # The first of them brings the header, and with it all of so small a file.
    assert web_server.asked(weights.name) < 2.1 * size


def test_a_packed_checkpoint_stays_what_it_is(web_server: WebServer, tmp_path: Path) -> None:
    packed = packed_model(tmp_path, web_server.root / "packed")
    brought = bring(f"{web_server.url}/packed", tmp_path)
    assert brought.manifest.digest == packed
    assert_same(tensors_on_disk(brought.manifest, brought.directory), random_weights())


def packed_model(tmp_path: Path, destination: Path) -> str:
    source = write_model(tmp_path / "plain")
    return import_model(source, destination).digest


def test_a_packed_checkpoint_of_other_chunks_is_refused(
    web_server: WebServer, tmp_path: Path
) -> None:
    pack(write_model(tmp_path / "plain"), web_server.root / "packed")
    with pytest.raises(InvalidSource, match=r"packed in chunks of 16777216 .* here have 8192"):
        bring(f"{web_server.url}/packed", tmp_path)


def test_a_packed_checkpoint_is_not_converted(web_server: WebServer, tmp_path: Path) -> None:
    packed_model(tmp_path, web_server.root / "packed")
    with pytest.raises(InvalidSource, match="was packed as F32"):
        bring(f"{web_server.url}/packed", tmp_path, "bfloat16")
    assert bring(f"{web_server.url}/packed", tmp_path / "as", "float32").manifest.digest


def test_a_damaged_packed_checkpoint_names_the_place(web_server: WebServer, tmp_path: Path) -> None:
    packed_model(tmp_path, web_server.root / "packed")
    checkpoints.flip_bit(web_server.root / "packed" / "partition-00000.bin", CHUNK + 3)
    with pytest.raises(CheckpointCorrupt) as caught:
        bring(f"{web_server.url}/packed", tmp_path)
    place = f"{web_server.url}/packed/partition-00000.bin"
    assert caught.value.metadata == {"file": place, "offset": str(CHUNK)}


def test_a_file_of_no_bytes_is_carried(web_server: WebServer, tmp_path: Path) -> None:
    (write_model(web_server.root) / "merges.txt").touch()
    brought = bring(web_server.url, tmp_path)
    assert (brought.directory / "merges.txt").read_bytes() == b""


@pytest.mark.parametrize("path", ["", "/nothing/there"])
def test_where_there_is_no_model_nothing_is_found(
    web_server: WebServer, tmp_path: Path, path: str
) -> None:
    with pytest.raises(SourceNotFound, match="none of the files of a model"):
        bring(web_server.url + path, tmp_path)


def test_a_configuration_alone_is_no_model(web_server: WebServer, tmp_path: Path) -> None:
    (web_server.root / "config.json").write_text("{}")
    with pytest.raises(InvalidSource, match=f"{web_server.url} has no"):
        bring(web_server.url, tmp_path)


def test_a_cut_file_is_corrupt_before_its_weights_are_fetched(
    web_server: WebServer, tmp_path: Path
) -> None:
    weights = write_model(web_server.root) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1000])
    with pytest.raises(CheckpointCorrupt) as caught:
        bring(web_server.url, tmp_path)
    assert caught.value.metadata["file"] == f"{web_server.url}/model.safetensors"
    assert web_server.asked(weights.name) <= len(content)


def test_a_missing_shard_is_named(web_server: WebServer, tmp_path: Path) -> None:
    sharded(web_server.root)
    (web_server.root / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointCorrupt, match=r"model-2\.safetensors: named by"):
        bring(web_server.url, tmp_path)
