"""What has to be so before any test imports torch, and the order of the tests."""

import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures import nearest_cluster
from tests.processes import let_children_be_interrupted
from tests.properties import choose_examples
from tests.support import Complaints

# OpenMP's threads wait without spinning: several processes of torch share few processors here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

let_children_be_interrupted()

choose_examples()


@pytest.fixture(autouse=True)
def _what_is_random_is_the_same_each_time() -> None:
    """Whichever tests came before in the process."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_is_said_of_lost_tasks() -> Iterator[None]:
    """Fails the test in which asyncio complains, although another may have left the task behind."""
    complaints = Complaints()
    logger = logging.getLogger("asyncio")
    logger.addHandler(complaints)
    yield
    logger.removeHandler(complaints)
    assert not complaints.lines, "\n".join(complaints.lines)


_OF_THEIR_OWN = tuple(
    f"tests/e2e/test_{name}.py"
    for name in (
        "migration_faults",
        "recovery",
        "ready_made",
        "experts",
        "silence",
        "faults",
        "control_planes",
        "operations",
        "operator",
        "device",
        "first_starts",
        "remote",
        "moved_pages",
        "memory",
        "trusted_sources",
        "early_starts",
        "fuzz",
        "peers",
        "kept_pages",
        "trust",
        "weights",
        "lent_layers",
    )
)
"""Whole clusters that nobody shares: whichever process is free takes them, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cluster that many share first, which takes longest; those of their own come last.

    What a file runs on one engine is run together: each change costs a deployment.
    """
    for item in items:
        _check_shares_nothing(item)
    places = {file: place for place, file in enumerate(dict.fromkeys(map(_file_of, items)))}
    items.sort(key=lambda item: (_rank(item), *_turn(item, places)))


def _check_shares_nothing(item: pytest.Item) -> None:
    shares = any(one.scope == "package" for one in nearest_cluster(item))
    if shares and _file_of(item) in _OF_THEIR_OWN:
        raise pytest.UsageError(f"{item.nodeid} takes the cluster that others share")


def _turn(item: pytest.Item, places: dict[str, int]) -> tuple[int, str]:
    """Of a test with a cluster: by its file, and in it by its engine; last what names none."""
    if not _has_clusters(item.nodeid):
        return 0, ""
    given: Any = getattr(item, "callspec", None)
    return places[_file_of(item)], str(given.params.get("engine", "~") if given else "~")


def _file_of(item: pytest.Item) -> str:
    return _file(item.nodeid)


def _rank(item: pytest.Item) -> int:
    file = _file_of(item)
    if file in _OF_THEIR_OWN:
        return 2 + _OF_THEIR_OWN.index(file)
    return 0 if _has_clusters(item.nodeid) else 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes run tests, each takes a file at a time; one takes the shared cluster.

    Each would start one anew, and have its nodes import all engines.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):  # type: ignore[misc]  # untyped library
        def _split_scope(self, nodeid: str) -> str:
            file = _file(nodeid)
            shares = _has_clusters(nodeid) and file not in _OF_THEIR_OWN
            return "clusters" if shares else file

    return Files(config, log)


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _has_clusters(nodeid: str) -> bool:
    return nodeid.startswith("tests/e2e/")
