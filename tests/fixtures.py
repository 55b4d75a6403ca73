"""What tests take of fixtures, as pytest knows it before they run."""

from typing import Any

import pytest


def nearest_cluster(item: pytest.Item) -> list[pytest.FixtureDef[Any]]:
    """The fixture `cluster` that a test takes; none, if it takes none."""
    info: Any = getattr(item, "_fixtureinfo", None)
    return list(info.name2fixturedefs.get("cluster", ())[-1:]) if info else []
