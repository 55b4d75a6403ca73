"""What has to be so before any test imports torch, and the order of the tests."""

import os

import pytest
from hypothesis import HealthCheck, settings

# OpenMP's threads wait without spinning: several processes of torch share few processors here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# How long an example takes tells of who else uses the machine.
settings.register_profile(
    "sllm", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sllm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole clusters first: no process is left alone with the longest files at the end."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)
