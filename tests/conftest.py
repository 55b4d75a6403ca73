"""What has to be so before any test imports torch, and the order of the tests."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.processes import let_children_be_interrupted

# OpenMP's threads wait without spinning: several processes of torch share few processors here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

let_children_be_interrupted()

# How long an example takes tells of who else uses the machine.
settings.register_profile(
    "sllm", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sllm")


_WAITING = ("tests/e2e/test_silence.py", "tests/e2e/test_device.py")
"""Clusters that are idle for most of their time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole clusters first: no process is left alone with them at the end."""
    items.sort(key=lambda item: not _has_clusters(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes run tests, each takes a file at a time; one takes all busy clusters.

    Two of them at once would starve each other where processors are few.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):  # type: ignore[misc]  # untyped library
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "clusters" if _has_clusters(nodeid) and file not in _WAITING else file

    return Files(config, log)


def _has_clusters(nodeid: str) -> bool:
    return nodeid.startswith("tests/e2e/")
