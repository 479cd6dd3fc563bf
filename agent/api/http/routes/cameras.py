"""What the cameras see: one small picture at a time, or a stream of them."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.responses import Response, StreamingResponse

from agent.api.http.previews import Picture
from agent.api.http.problems import COMMON, NotFound
from agent.api.http.surface import LOOK, Shared, Surface, Welcome

routes = APIRouter(prefix="/api/v1/cameras", tags=["cameras"], dependencies=[LOOK], responses=COMMON)

BOUNDARY: Final = "frame"


def _produces(media_type: str, what: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": what, "content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}}


@routes.get(
    "/{camera}/preview.jpg",
    operation_id="cameras.preview",
    response_class=Response,
    responses=_produces("image/jpeg", "X-Captured-Ns: when it was taken; X-Age-Ms: how old it is; X-Seq: its number.")
    | {204: {"description": "No new picture came within 2 s; the camera's state in the status says why."}},
)
async def preview(
    surface: Shared,
    camera: str,
    after: Annotated[int, Query(ge=0, le=2**63 - 1, description="X-Captured-Ns of the one that you have.")] = 0,
) -> Response:
    """The newest small picture; with `after`, as soon as there is a newer one."""
    _require(surface, camera)
    picture = await surface.previews.after(camera, after)
    if picture is None:
        return Response(status_code=204)
    return Response(picture.jpeg, media_type="image/jpeg", headers=_about(picture))


@routes.get(
    "/{camera}/stream.mjpeg",
    operation_id="cameras.stream",
    response_class=StreamingResponse,
    responses=_produces(f"multipart/x-mixed-replace; boundary={BOUNDARY}", "JPEGs, until the token is revoked."),
)
async def stream(surface: Shared, welcome: Welcome, camera: str) -> StreamingResponse:
    """Motion JPEG at `http.preview_fps`, for whatever can show an image that changes."""
    _require(surface, camera)
    parts = _parts(surface, camera, welcome)
    return StreamingResponse(parts, media_type=f"multipart/x-mixed-replace; boundary={BOUNDARY}")


async def _parts(surface: Surface, camera: str, welcome: Callable[[], bool]) -> AsyncIterator[bytes]:
    async for picture in surface.previews.stream(camera):
        if not welcome():
            return
        lines = [f"{name}: {value}" for name, value in _about(picture).items()]
        head = [f"--{BOUNDARY}", "Content-Type: image/jpeg", f"Content-Length: {len(picture.jpeg)}", *lines, "", ""]
        yield "\r\n".join(head).encode() + picture.jpeg + b"\r\n"


def _about(picture: Picture) -> dict[str, str]:
    return {
        "X-Captured-Ns": str(picture.capture_ns),
        "X-Age-Ms": f"{picture.age_ms:.0f}",
        "X-Seq": str(picture.seq),
    }


def _require(surface: Surface, camera: str) -> None:
    if camera not in surface.config.cameras:
        known = ", ".join(surface.config.cameras) or "none"
        raise NotFound(f"There is no camera {camera[:60]!r}.", f"The cameras of this station: {known}.")
