"""What has to be so before any test imports torch, and the order of the tests."""

import os

import pytest

# OpenMP's threads wait without spinning: several processes of torch share few processors here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole clusters first: no process is left alone with the longest files at the end."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)
