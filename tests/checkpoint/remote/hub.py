"""A hub on loopback that speaks as much of the hub's protocol as its client asks for."""

import hashlib
from pathlib import Path

from aiohttp import web

from tests.checkpoint.remote.web import Hit, WebServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_geheim"


class Hub(WebServer):
    """One repository, of one directory."""

    repository = "org/tiny"

    def __init__(self, root: Path, *, private: bool = False) -> None:
        """Private is for who has the token alone."""
        super().__init__(root)
        self._private = private
        self.fault = self._answer

    async def _answer(
        self, request: web.Request, hit: Hit, content: bytes
    ) -> web.StreamResponse | None:
        if self._private and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401, headers={"X-Error-Code": "RepoNotFound"})
        path = hit.path
        if path.startswith("api/models/"):
            return self._info(path.removeprefix("api/models/"))
        prefix = f"{self.repository}/resolve/{COMMIT}/"
        if path.startswith(prefix) and (self.root / path.removeprefix(prefix)).is_file():
            return self._file(self.root / path.removeprefix(prefix))
        return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})

    def _info(self, asked: str) -> web.Response:
        if asked == f"{self.repository}/tree/{COMMIT}":
            return web.json_response([self._tree_entry(path) for path in self._paths()])
        name, _, revision = asked.partition("/revision/")
        if name != self.repository:
            return web.Response(status=404, headers={"X-Error-Code": "RepoNotFound"})
        if revision not in ("", "main", "v1", COMMIT):
            return web.Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        files = [
            {"rfilename": self._name(path), "size": path.stat().st_size, "blobId": _sha(path)}
            for path in self._paths()
        ]
        return web.json_response({"id": name, "sha": COMMIT, "siblings": files})

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.is_file())

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def _tree_entry(self, path: Path) -> dict[str, object]:
        size = path.stat().st_size
        return {"type": "file", "path": self._name(path), "size": size, "oid": _sha(path)}

    def _file(self, path: Path) -> web.FileResponse:
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_sha(path)}"'}
        return web.FileResponse(path, headers=headers)


def _sha(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
