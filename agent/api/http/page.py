"""The operator page: plain files that lie beside this package, read once, served with their hash."""

import hashlib
import mimetypes
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from agent.api.http.problems import NotFound

INDEX: Final = "index.html"

TYPES: Final = {".js": "text/javascript", ".webmanifest": "application/manifest+json", ".svg": "image/svg+xml"}


class Page:
    """All files of the page, in memory: less than a megabyte, and nothing else can be asked for by a path."""

    def __init__(self) -> None:
        self._files = dict(_walk(files("agent.api") / "web", ""))

    def router(self) -> APIRouter:
        routes = APIRouter(include_in_schema=False)
        routes.add_api_route("/", self._serve, methods=["GET", "HEAD"])
        routes.add_api_route("/{path:path}", self._serve, methods=["GET", "HEAD"])
        return routes

    async def _serve(self, request: Request, path: str = INDEX) -> Response:
        try:
            content, media_type, tag = self._files[path]
        except KeyError:
            raise NotFound(f"There is nothing at /{path[:100]}.", "The page is at /, the API at /api/v1.") from None
        headers = {"ETag": tag, "Cache-Control": "no-cache"}  # asked again every time: a new version shows at once
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, tuple[bytes, str, str]]]:
    found = []
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            found += _walk(entry, f"{name}/")
        else:
            content = entry.read_bytes()
            ending = f".{name.rpartition('.')[2]}"
            media_type = TYPES.get(ending) or mimetypes.guess_type(name)[0] or "application/octet-stream"
            found.append((name, (content, media_type, f'"{hashlib.sha256(content).hexdigest()[:16]}"')))
    return found
