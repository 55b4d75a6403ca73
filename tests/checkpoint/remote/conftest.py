from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoint.remote.web import WebServer


@pytest.fixture
def web_server(tmp_path: Path) -> Iterator[WebServer]:
    """A web server of the directory `web`."""
    root = tmp_path / "web"
    root.mkdir()
    with WebServer(root) as server:
        yield server
