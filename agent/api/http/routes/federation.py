"""Learning with others: whether, with which episodes, and what came of it. Enrolling is for the station itself."""

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from agent.api.http.problems import COMMON, NotFound
from agent.api.http.surface import LOOK, Shared, Surface, Who
from agent.api.schemas import Access, Reply, Request
from agent.config import NAME_PATTERN
from agent.errors import BadInput

routes = APIRouter(prefix="/api/v1/fl", tags=["federation"], dependencies=[LOOK], responses=COMMON)


class Resume(Request):
    now: Annotated[bool, Field(description="Do not wait for `federation.idle_min`.")] = False


class Consent(Request):
    dataset: Annotated[str, Field(pattern=NAME_PATTERN)]
    on: Annotated[bool, Field(description="Whether others may profit from what is learnt from it here.")]


class Federation(Reply):
    """docs/federation.md describes the keys."""

    enrolled: bool
    state: str
    reason: str
    against: Annotated[list[str], Field(description="Why it takes no part now, the first reason first.")]


class FederationReply(Reply):
    federation: Federation
    consent: Annotated[dict[str, str | None], Field(description="Dataset -> since when; null: it may not be used.")]


class PausedReply(Reply):
    paused: bool


class ConsentReply(Reply):
    consent: dict[str, str | None]


class RollbackReply(Reply):
    policy: str | None
    instead_of: str | None


@routes.get("", operation_id="fl.status", response_model=FederationReply)
async def status(surface: Shared) -> JSONResponse:
    """Whether this station learns with others, what it does now, and which datasets it may use."""
    federation = await _ask(surface, "fl.status")
    return JSONResponse({"federation": federation, **(await _ask(surface, "fl.consent"))})


@routes.post("/pause", operation_id="fl.pause", response_model=PausedReply)
async def pause(surface: Shared, visitor: Who) -> JSONResponse:
    """Take no part until it is resumed. What is being learnt now is returned first."""
    return await _change(surface, visitor, "fl.pause")


@routes.post("/resume", operation_id="fl.resume", response_model=PausedReply)
async def resume(surface: Shared, visitor: Who, body: Resume | None = None) -> JSONResponse:
    """Take part again when the arm is idle."""
    return await _change(surface, visitor, "fl.resume", body)


@routes.post("/consent", operation_id="fl.consent", response_model=ConsentReply)
async def consent(surface: Shared, visitor: Who, body: Consent) -> JSONResponse:
    """Say whether a dataset may be learnt from with others. Its episodes never leave the station."""
    return await _change(surface, visitor, "fl.consent", body)


@routes.post("/rollback", operation_id="fl.rollback", response_model=RollbackReply)
async def rollback(surface: Shared, visitor: Who) -> JSONResponse:
    """Use the policy again that was used before the last one that learning with others led to."""
    return await _change(surface, visitor, "fl.rollback")


async def _change(surface: Surface, visitor: Who, verb: str, body: Request | None = None) -> JSONResponse:
    visitor.require(Access.CONTROL)
    answer = JSONResponse(await _ask(surface, verb, body.args() if body else {}))
    surface.live.look()
    return answer


async def _ask(surface: Surface, verb: str, args: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        return await surface.daemon.call(verb, args)
    except BadInput as error:
        if "Unknown verb" in error.message:
            raise NotFound("This station cannot learn with others.", "Its agent was built without.") from error
        raise
