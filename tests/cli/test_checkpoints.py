"""`sllm pack`, `verify` and `inspect`, on real checkpoints."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from sllm import checkpoint
from sllm.checkpoint.format.form import WeightForm, form_file
from sllm.checkpoint.saving.saving import write_tensors
from tests.checkpoint.checkpoints import assert_same, flip_bit, random_weights, write_model
from tests.cli.conftest import Run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source")


@pytest.fixture
def packed(source: Path) -> Path:
    checkpoint.pack(source, source.parent / "packed")
    return source.parent / "packed"


def test_pack(run: Run, source: Path, tmp_path: Path) -> None:
    done = run("pack", str(source), str(tmp_path / "out"), "--dtype", "float16")

    digest = checkpoint.inspect(tmp_path / "out").digest
    assert done.code == 0
    assert done.out.startswith(f"{tmp_path}/out: {digest}, 24.0 KiB in ")
    expected = {name: tensor.half() for name, tensor in random_weights().items()}
    assert_same(checkpoint.load(tmp_path / "out"), expected)


def test_pack_refuses_in_one_line(run: Run, source: Path, tmp_path: Path) -> None:
    done = run("pack", str(source), str(source))

    assert (done.code, done.out) == (1, "")
    refusal = f"error: INVALID_ARGUMENT: {source} is there already: give another name (next: "
    assert done.err.startswith(refusal)
    assert done.err.count("\n") == 1


def test_pack_refuses_before_it_begins(run: Run, source: Path, tmp_path: Path) -> None:
    for arguments in (["out", "--for", "llama.cpp"], [], ["--dtype", "float16", "--for", "vllm"]):
        done = run("pack", str(source), *arguments)
        assert done.code == 1
        assert done.err.startswith("error: INVALID_ARGUMENT: ")
    assert not (tmp_path / "out").exists()


def test_inspect_shows_what_lies_ready(run: Run, packed: Path) -> None:
    versions = {"torch": "2.13", "vllm": "0.32"}
    digest = checkpoint.inspect(packed).digest or ""
    form = WeightForm("vllm:tp=2-1", "vllm", 2, versions, "oneDNN x86_64", "bfloat16", digest)
    made = packed / "forms" / form.name
    made.parent.mkdir()
    write_tensors(random_weights(), made, 8192, 1 << 20, {"form.json": form_file(form)})

    shown = run("inspect", str(packed)).out
    for cell in ("vllm:tp=2", "torch 2.13", "oneDNN x86_64", "bfloat16"):
        assert cell in shown
    (ready,) = json.loads(run("inspect", str(packed), "--json").out)["ready"]
    assert ready["form"] == asdict(form)
    assert ready["size_bytes"] == 49152
    out = run("inspect", str(made)).out
    assert f"made of {digest}" in " ".join(out.split())


def test_verify(run: Run, packed: Path, source: Path) -> None:
    assert "digests are right, 48.0 KiB in" in run("verify", str(packed)).out
    done = run("verify", str(source / "model.safetensors"))
    assert (done.code, done.err) == (0, "")
    assert "there are no digests" in done.out


def test_pack_and_verify_as_json(run: Run, source: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    packed = json.loads(run("pack", str(source), out, "--json").out)
    verified = json.loads(run("verify", out, "--json").out)

    digest = checkpoint.inspect(out).digest
    for found in (packed, verified):
        assert (found["path"], found["digest"], found["size_bytes"]) == (out, digest, 49152)
        assert found["seconds"] > 0
    assert verified["damage"] == []


def test_damage_as_json(run: Run, packed: Path) -> None:
    flip_bit(packed / "partition-00000.bin", 9)

    done = run("verify", str(packed), "--json")

    assert done.code == 1
    (place,) = json.loads(done.out)["damage"]
    assert (place["file"], place["offset"]) == (str(packed / "partition-00000.bin"), "0")
    assert json.loads(done.err)["error"]["reason"] == "CHECKPOINT_CORRUPT"


def test_verify_names_every_wrong_place(run: Run, packed: Path) -> None:
    flip_bit(packed / "partition-00000.bin", 9)
    os.truncate(packed / "config.json", 3)

    done = run("verify", str(packed))

    assert done.code == 1
    rows = [line.split()[:4] for line in done.out.splitlines()[1:]]
    assert rows == [
        ["config.json", "3", "has", "3"],
        ["partition-00000.bin", "0", "the", "chunk"],
    ]
    assert done.err.startswith(
        f"error: CHECKPOINT_CORRUPT: {packed} is wrong in 2 place(s), listed above (next: "
    )


def test_inspect(run: Run, packed: Path) -> None:
    out = run("inspect", str(packed)).out
    lines = [line.split() for line in out.splitlines()]

    assert ["format", "sllm-checkpoint,", "version", "1"] in lines
    assert ["digest", checkpoint.inspect(packed).digest] in lines
    assert ["tensors", "5:", "F32", "46.4", "KiB"] in lines
    name = "model.embed_tokens.weight"
    assert [name, "F32", "100x16", "6.2", "KiB", "partition-00000.bin", "0"] in lines


def test_inspect_as_json(run: Run, source: Path) -> None:
    path = source / "model.safetensors"
    found = json.loads(run("inspect", str(path), "--json").out)

    assert (found["format"], found["digest"], found["path"]) == ("safetensors", None, str(path))
    assert {tensor["name"] for tensor in found["tensors"]} == set(random_weights())


def test_what_is_not_there(run: Run, tmp_path: Path) -> None:
    for command in ("verify", "inspect"):
        done = run(command, str(tmp_path / "nothing"))
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("error: SOURCE_NOT_FOUND: ")
