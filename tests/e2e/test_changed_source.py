"""Files that are replaced under a deployment: never two models in one text."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from make_models import make_model

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster
from tests.e2e.reference import greedy
from tests.support import wait_until

LONG: dict[str, Any] = {"max_tokens": 400, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture
def source(cluster: Cluster, models: Path, tmp_path: Path) -> Iterator[Path]:
    """A deployed directory of its own."""
    directory = shutil.copytree(models / "tiny-llama", tmp_path / "model")
    cluster.client.deploy("changing", f"file://{directory}", keep_alive=600.0)
    yield directory
    cluster.client.delete("changing")
    cluster.wait_for_instances(0)


def replace_weights(directory: Path, tmp_path: Path) -> None:
    """Other weights of the same shapes, put in place of what is there by one rename."""
    other = make_model("tiny-llama", tmp_path / "other", seed=7)
    os.replace(other / "model.safetensors", directory / "model.safetensors")


def begin(cluster: Cluster) -> sllm.Stream:
    """A generation that goes on for a while, of which some has come."""
    stream = cluster.client.generate("changing", "Once upon a time", **LONG)
    count = 0
    for event in stream:
        count += len(event.token_ids) if isinstance(event, sllm.Tokens) else 0
        if count >= 5:
            break
    return stream


def test_a_generation_ends_with_the_weights_that_it_began_with(
    cluster: Cluster, source: Path, tmp_path: Path
) -> None:
    expected = cluster.client.complete("changing", "Once upon a time", **LONG)
    stream = begin(cluster)
    replace_weights(source, tmp_path)
    with pytest.raises(errors.SourceChanged):
        cluster.client.migrate(request_id=stream.request_id)
    cluster.client.deploy("changing", f"file://{source}", keep_alive=600.0)
    new = cluster.client.complete("changing", "Once upon a time", max_tokens=24, temperature=0.0)
    old = stream.result()

    assert old.token_ids == expected.token_ids
    assert not old.migrations
    reference = greedy(source, "Once upon a time", 24)
    assert tuple(new.token_ids) == reference.token_ids
    assert new.token_ids != expected.token_ids[: len(new.token_ids)]


def test_a_generation_that_is_lost_does_not_go_on_with_others(
    cluster: Cluster, source: Path, tmp_path: Path
) -> None:
    stream = begin(cluster)
    replace_weights(source, tmp_path)
    (instance,) = cluster.client.instances()
    cluster.signal_worker(instance.instance_id, signal.SIGKILL)
    with pytest.raises(errors.SourceChanged, match="model"):
        stream.result()


def test_another_tokenizer_is_another_checkpoint(cluster: Cluster, source: Path) -> None:
    cluster.client.complete("changing", "a", max_tokens=1)
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 77}))
    (instance,) = cluster.client.instances()
    cluster.signal_worker(instance.instance_id, signal.SIGKILL)
    wait_until(lambda: not cluster.client.instances())
    with pytest.raises(errors.SourceChanged):
        cluster.client.complete("changing", "a", max_tokens=1)
    cluster.client.deploy("changing", f"file://{source}", keep_alive=600.0)
    assert cluster.client.complete("changing", "a", max_tokens=1).token_ids
