"""A console over fake nodes, and a browser that looks at it."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Page

from tests.control.clusters import Cluster, cluster_of
from tests.gateway.console.browser import CHROMIUM, browsing, chromium, console_of
from tests.gateway.console.lively_node import LivelyNode


@dataclass(frozen=True)
class Scene:
    """What a test has before it."""

    cluster: Cluster
    nodes: list[LivelyNode]
    page: Page
    url: str

    async def goto(self, place: str) -> None:
        """Opens a part of the console."""
        await self.page.goto(f"{self.url}/#/{place}")
        await self.page.locator('[data-link="live"]').wait_for()


@pytest.fixture(scope="module")
def browser() -> Iterator[str]:
    """A browser that tests share."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine (Debian: apt-get install chromium)")
    with chromium() as browser:
        yield browser


@pytest.fixture
async def scene(tmp_path: Path, browser: str) -> AsyncIterator[Scene]:
    """Two nodes, a console, and a page of it."""
    # All of it is in one process, beside a browser that comes up: nodes may be silent for a while.
    async with cluster_of(tmp_path, lease_seconds=15.0) as cluster:
        nodes = []
        for name in ("n1", "n2"):
            node = cluster.nodes[name] = LivelyNode(name)
            await node.start(cluster.address)
            nodes.append(node)
        await cluster.wait_for_nodes(2)
        async with console_of(cluster.address) as url, browsing(browser) as page:
            yield Scene(cluster, nodes, page, url)
