"""The console as a real server in this process, and a real Chromium that looks at it."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from playwright.async_api import ConsoleMessage, Page, async_playwright, expect

from tests.gateway.connect.serving import door_of

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
"""None: there is no browser here, and what needs one is skipped."""
ARGUMENTS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TIMEOUT_MS: Final = 15_000
START_SECONDS: Final = 30.0


@asynccontextmanager
async def console_of(control_address: str) -> AsyncIterator[str]:
    """The URL of a gateway for a control plane."""
    async with door_of(control_address) as door:
        yield door.url


@contextmanager
def chromium() -> Iterator[str]:
    """A browser for as long as the block lasts; gives where it is driven from (a CDP address).

    Whoever looks at a page has a context of its own in it, as another person would: one browser
    serves many tests.
    """
    assert CHROMIUM
    with tempfile.TemporaryDirectory(prefix="sllm-browser-", ignore_cleanup_errors=True) as profile:
        own = ("--remote-debugging-port=0", f"--user-data-dir={profile}")
        process = subprocess.Popen([CHROMIUM, *ARGUMENTS, *own], stderr=subprocess.DEVNULL)
        try:
            yield f"http://127.0.0.1:{_port(Path(profile), process)}"
        finally:
            process.terminate()
            process.wait(START_SECONDS)


def _port(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Where it listens, which it writes down once it does."""
    told = profile / "DevToolsActivePort"
    until = time.monotonic() + START_SECONDS
    while not (told.exists() and told.read_text()):
        assert process.poll() is None, "Chromium has ended"
        assert time.monotonic() < until, "Chromium did not come up"
        time.sleep(0.02)
    return told.read_text().splitlines()[0]


@asynccontextmanager
async def browsing(browser: str, width: int = 1280, height: int = 800) -> AsyncIterator[Page]:
    """A page in a browser, of a context of its own; fails if the page has complained."""
    complaints: list[str] = []
    async with async_playwright() as playwright:
        connected = await playwright.chromium.connect_over_cdp(browser)
        context = await connected.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark",
            reduced_motion="reduce",
        )
        context.set_default_timeout(TIMEOUT_MS)
        expect.set_options(timeout=TIMEOUT_MS)
        shown = await context.new_page()
        _listen(shown, complaints)
        try:
            yield shown
        finally:
            await context.close()
    assert not complaints


def _listen(shown: Page, complaints: list[str]) -> None:
    """Takes down what the page is at fault for: that a call fails may be what a test wants."""

    def said(message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    shown.on("console", said)
    shown.on("pageerror", lambda error: complaints.append(error.message))
