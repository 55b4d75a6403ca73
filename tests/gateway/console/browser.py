"""The console as a real server in this process, and a real Chromium that looks at it."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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


@asynccontextmanager
async def console_of(control_address: str) -> AsyncIterator[str]:
    """The URL of a gateway for a control plane."""
    async with door_of(control_address) as door:
        yield door.url


@asynccontextmanager
async def browsing(width: int = 1280, height: int = 800) -> AsyncIterator[Page]:
    """A page of a browser with a profile of its own; fails if the page has complained."""
    complaints: list[str] = []
    with tempfile.TemporaryDirectory(prefix="sllm-browser-") as profile:
        async with async_playwright() as playwright:
            context = await playwright.chromium.launch_persistent_context(
                profile,
                executable_path=CHROMIUM,
                args=list(ARGUMENTS),
                viewport={"width": width, "height": height},
                color_scheme="dark",
                reduced_motion="reduce",
            )
            context.set_default_timeout(TIMEOUT_MS)
            expect.set_options(timeout=TIMEOUT_MS)
            shown = context.pages[0]
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
