"""The page as it is served: what it is made of, how large that is, and what it may do."""

import gzip
import re

import aiohttp
import pytest

from sllm.gateway.console.page import STATIC
from tests.gateway.console.browser import console_of
from tests.gateway.console.sources import STAMP, digest

MOST_BYTES = 300 * 1024
"""Of everything, as gzip has it."""
NOBODY = "127.0.0.1:1"


def test_what_is_served_was_built_of_the_sources() -> None:
    assert STAMP.read_text().strip() == digest(), "`make console` builds it anew"


def test_it_is_small() -> None:
    files = [path for path in STATIC.rglob("*") if path.is_file()]
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) < MOST_BYTES


def test_it_needs_nothing_from_elsewhere() -> None:
    page = (STATIC / "index.html").read_text()
    referred = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert referred
    assert all(one.startswith("./") for one in referred)
    assert "<style" not in page
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    for sheet in STATIC.rglob("*.css"):
        assert "url(" not in sheet.read_text()


@pytest.mark.parametrize("path", ["/", "/icon.svg", "/assets"])
async def test_browsers_are_told_what_it_may_do(path: str) -> None:
    if path == "/assets":
        path = f"/assets/{next((STATIC / 'assets').glob('*.js')).name}"
    async with (
        console_of(NOBODY) as url,
        aiohttp.ClientSession() as session,
        session.get(f"{url}{path}") as reply,
    ):
        await reply.read()
    assert reply.status == 200
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert ("immutable" in reply.headers["cache-control"]) == path.startswith("/assets")


async def test_what_is_not_there_is_not_found() -> None:
    async with console_of(NOBODY) as url, aiohttp.ClientSession() as session:
        for path in ("/assets/nothing.js", "/assets/../page.py", "/nothing"):
            async with session.get(f"{url}{path}") as reply:
                assert reply.status == 404
