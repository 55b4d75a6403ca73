"""The console's page: files that are built beforehand, and what a browser may do with them."""

from pathlib import Path
from typing import Final

from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC: Final = Path(__file__).parent / "static"
"""What `make console` builds of `console/`."""

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_ASKED_ANEW: Final = {**_HEADERS, "cache-control": "no-cache"}
_KEPT: Final = {**_HEADERS, "cache-control": "public, max-age=31536000, immutable"}


class _Assets(StaticFiles):
    """Files whose names change with what is in them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """See StaticFiles."""
        response = await super().get_response(path, scope)
        response.headers.update(_KEPT)
        return response


async def _page(_: object) -> Response:
    return FileResponse(STATIC / "index.html", headers=_ASKED_ANEW)


async def _icon(_: object) -> Response:
    return FileResponse(STATIC / "icon.svg", headers=_ASKED_ANEW)


def routes() -> list[BaseRoute]:
    """The page at `/`, and what it is made of."""
    return [
        Route("/", _page),
        Route("/icon.svg", _icon),
        Mount("/assets", _Assets(directory=STATIC / "assets")),
    ]
