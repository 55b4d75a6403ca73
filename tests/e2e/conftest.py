"""Clusters and models that end-to-end tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from make_models import make_model

from tests.e2e.cluster import Cluster, running

FAMILIES = ("tiny-llama", "tiny-opt", "tiny-qwen2", "tiny-gpt2")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of small random models: each family in one file, and in shards."""
    directory = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        make_model(family, directory / family)
        make_model(family, directory / f"{family}-sharded", shards=3)
    return directory


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes; tests delete what they deploy."""
    with running(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
