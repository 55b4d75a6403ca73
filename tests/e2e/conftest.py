"""Clusters and models that end-to-end tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from make_models import make_model

from tests.e2e.cluster import Cluster, running
from tests.e2e.engines import ENGINES

FAMILIES = ("tiny-llama", "tiny-opt", "tiny-qwen2", "tiny-gpt2")
FIRST_SECONDS = 600.0
"""What a test may take that comes first, and waits for what its cluster's nodes import."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives those that share a cluster the time that whoever is first of them needs."""
    for item in items:
        shares = "cluster" in getattr(item, "fixturenames", ())
        if shares and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(FIRST_SECONDS))


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
    """Two nodes that have every engine; tests delete what they deploy."""
    with running(tmp_path_factory.mktemp("cluster"), engines=ENGINES) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn; a module's tests on one of them are run together."""
    name: str = request.param
    return name
