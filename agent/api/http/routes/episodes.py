"""What was recorded: look at it again, judge it, delete it, bring it back."""

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query
from fastapi.responses import FileResponse, JSONResponse
from pydantic import Field

from agent.api import schemas
from agent.api.http.access.visitors import Visitor
from agent.api.http.problems import COMMON, NotFound
from agent.api.http.replay import Dataset
from agent.api.http.surface import LOOK, Shared, Surface, Who, ask
from agent.api.schemas import EpisodeReply, EpisodesReply, Reply
from agent.errors import BadInput

routes = APIRouter(prefix="/api/v1/episodes", tags=["episodes"], dependencies=[LOOK], responses=COMMON)

Number = Annotated[int, Path(ge=0, le=schemas.MAX_EPISODE_NUMBER, description="As the list shows it.")]

MAX_POINTS: Final = 20_000

_MP4: Final = {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}

VIDEO: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "All of it.", "content": _MP4},
    206: {"description": "The part that `Range` asked for.", "content": _MP4},
    400: {"description": "`Range` is no range of bytes."},
    416: {"description": "`Range` lies outside of the file."},
}


class Mark(schemas.Request):
    success: schemas.Judgement


class Clip(Reply):
    camera: str
    url: str
    from_s: Annotated[float, Field(description="Where in the file the episode begins.")]
    to_s: float


class ReplayReply(Reply):
    fps: float
    frames: int
    clips: list[Clip]
    times_s: list[float]
    state: Annotated[list[list[float]], Field(description="Measured: [row][joint].")]
    action: Annotated[list[list[float]], Field(description="Sent to the servos: [row][joint].")]


@routes.get("", operation_id="episodes.list", response_model=EpisodesReply)
async def list_(
    surface: Shared,
    deleted: Annotated[bool, Query(description="Also those that were deleted.")] = False,
) -> JSONResponse:
    """All episodes, in the order of the dataset."""
    return JSONResponse(await surface.daemon.call("episodes.list", {"deleted": True} if deleted else {}))


@routes.get("/{episode}", operation_id="episodes.show", response_model=EpisodeReply)
async def show(surface: Shared, visitor: Who, episode: Number) -> JSONResponse:
    """Everything known about one episode; docs/dataset.md describes it."""
    return await _about(surface, visitor, "episodes.show", schemas.Episode(episode=episode))


@routes.get("/{episode}/replay", operation_id="episodes.replay", response_model=ReplayReply)
async def replay(
    surface: Shared,
    episode: Number,
    points: Annotated[int, Query(ge=2, le=MAX_POINTS, description="At most so many rows, evenly chosen.")] = 2000,
) -> dict[str, Any]:
    """Its joints, row by row, and where its videos are."""
    try:
        found = await asyncio.to_thread(_dataset(surface).replay, episode, points)
    except BadInput as error:
        raise NotFound(error.message, error.hint) from error
    return {
        "fps": found.fps,
        "frames": found.frames,
        "clips": [
            {
                "camera": clip.camera,
                "url": f"/api/v1/episodes/{episode}/videos/{clip.camera}",
                "from_s": clip.from_s,
                "to_s": clip.to_s,
            }
            for clip in found.clips
        ],
        "times_s": found.times_s,
        "state": found.state,
        "action": found.action,
    }


@routes.get(
    "/{episode}/videos/{camera}", operation_id="episodes.video", response_class=FileResponse, responses=COMMON | VIDEO
)
async def video(surface: Shared, episode: Number, camera: str) -> FileResponse:
    """One camera's video file, or the part of it that `Range` asks for."""
    try:
        clip = await asyncio.to_thread(_dataset(surface).clip, episode, camera)
    except BadInput as error:
        raise NotFound(error.message, error.hint) from error
    if not clip.path.is_file():
        raise NotFound(f"The video of camera {camera} is missing.", "`so-agent episodes check` shows what else is.")
    return FileResponse(clip.path, media_type="video/mp4", headers={"Cache-Control": "private, max-age=3600"})


@routes.post("/{episode}/mark", operation_id="episodes.mark", response_model=EpisodeReply)
async def mark(surface: Shared, visitor: Who, episode: Number, body: Mark) -> JSONResponse:
    """Judge it: a success, a failure, or not judged."""
    wanted = schemas.EpisodeMark(episode=episode, success=body.success)
    return await _about(surface, visitor, "episodes.mark", wanted)


@routes.delete("/{episode}", operation_id="episodes.delete", response_model=EpisodeReply)
async def delete(surface: Shared, visitor: Who, episode: Number) -> JSONResponse:
    """Hide it from lists and from training. Its files stay, so that it can be restored."""
    return await _about(surface, visitor, "episodes.delete", schemas.Episode(episode=episode))


@routes.post("/{episode}/restore", operation_id="episodes.restore", response_model=EpisodeReply)
async def restore(surface: Shared, visitor: Who, episode: Number) -> JSONResponse:
    """Bring a deleted episode back."""
    return await _about(surface, visitor, "episodes.restore", schemas.Episode(episode=episode))


async def _about(surface: Surface, visitor: Visitor, verb: str, body: schemas.Request) -> JSONResponse:
    """The daemon finds an unknown episode a bad argument; here it is part of an address."""
    try:
        return JSONResponse(await ask(surface, visitor, verb, body))
    except BadInput as error:
        raise NotFound(error.message, error.hint) from error


def _dataset(surface: Surface) -> Dataset:
    return Dataset(surface.config.paths.dataset)
