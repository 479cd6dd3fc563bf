"""The policies of the station, and which of them is in use."""

import asyncio
from typing import Any

from fastapi import APIRouter

from agent.api.http.problems import COMMON, NotFound
from agent.api.http.surface import LOOK, Shared, Surface, Who
from agent.api.schemas import Access, Reply
from agent.errors import BadInput
from agent.inference.library import Entry, Library

routes = APIRouter(prefix="/api/v1/policies", tags=["policies"], dependencies=[LOOK], responses=COMMON)


class Policy(Reply):
    name: str
    in_use: bool
    bytes: int
    hash: str
    problem: str
    type: str | None
    fps: float | None
    horizon_s: float | None
    tasks: list[str]


class Policies(Reply):
    policies: list[Policy]


@routes.get("", operation_id="policies.list", response_model=Policies)
async def list_(surface: Shared) -> dict[str, Any]:
    """As `so-agent policy list`."""
    found = await asyncio.to_thread(_library(surface).list)
    return {"policies": [_shown(entry) for entry in found]}


@routes.post("/{name}/use", operation_id="policies.use", response_model=Policy)
async def use(surface: Shared, visitor: Who, name: str) -> dict[str, Any]:
    """Make it the one that tasks run when they name none. Every byte of it is verified before."""
    visitor.require(Access.CONTROL)
    library = _library(surface)
    try:
        entry = await asyncio.to_thread(library.entry, name)
    except BadInput as error:
        raise NotFound(error.message, error.hint) from error
    await asyncio.to_thread(library.use, entry.name)
    return _shown(await asyncio.to_thread(library.entry, name))


def _library(surface: Surface) -> Library:
    paths = surface.config.paths
    return Library(paths.policies, paths.policy_in_use)


def _shown(entry: Entry) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "name": entry.name,
        "in_use": entry.in_use,
        "bytes": entry.bytes,
        "hash": entry.hash,
        "problem": entry.problem,
        "type": manifest.type if manifest else None,
        "fps": manifest.fps if manifest else None,
        "horizon_s": manifest.chunk_size / manifest.fps if manifest else None,
        "tasks": list(manifest.tasks) if manifest else [],
    }
