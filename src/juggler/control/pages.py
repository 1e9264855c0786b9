"""The dashboard's files, from memory: a fixed set, so no path can lead anywhere else."""

import gzip
import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
}
_INDEX = "index.html"


class _File(NamedTuple):
    kind: str
    data: bytes
    packed: bytes
    etag: str


class Pages:
    """See the module. Read once, when the control plane starts."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._read(files("juggler.dashboard") / "static", "")

    def routes(self) -> list[Route]:
        """One per file, and the page itself at the root."""
        paths = [f"/{name}" for name in self._files]
        return [Route(path, self._answer, methods=["GET"]) for path in ("/", *paths)]

    def _read(self, folder: Traversable, prefix: str) -> None:
        for one in folder.iterdir():
            name = f"{prefix}{one.name}"
            if one.is_dir():
                self._read(one, f"{name}/")
                continue
            kind = _TYPES.get("." + one.name.rpartition(".")[2])
            if kind is not None:
                data = one.read_bytes()
                etag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
                self._files[name] = _File(kind, data, gzip.compress(data, 9, mtime=0), etag)

    async def _answer(self, request: Request) -> Response:
        file = self._files[request.url.path.lstrip("/") or _INDEX]
        headers = {"etag": file.etag, "cache-control": "no-cache", "vary": "accept-encoding"}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if file.etag in known:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(file.packed, headers=headers | {"content-encoding": "gzip"}, media_type=file.kind)
        return Response(file.data, headers=headers, media_type=file.kind)
