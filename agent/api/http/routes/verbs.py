"""Verbs that move the arm or stop it: `teleop.start` is POST /api/v1/teleop/start, its arguments are the body."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from agent.api import schemas
from agent.api.http.problems import COMMON
from agent.api.http.surface import LeaseHeader, Shared, Who, ask
from agent.api.schemas import VERBS, Access
from agent.api.stop import stop

ABOUT: Final = {
    Access.MOVE: "Needs control: take a lease first, and renew it.",
    Access.CONTROL: "Needs a token that may control, because it may switch torque on; and no lease.",
    Access.STOP: "Whoever may see the arm may do this; it needs no lease.",
}


def router() -> APIRouter:
    routes = APIRouter()
    routes.add_api_route(
        path_of("estop"),
        _estop,
        methods=["POST"],
        operation_id="estop",
        tags=["arm"],
        summary=VERBS["estop"].summary,
        response_model=schemas.Stopped,
        responses=COMMON,
    )
    for name, verb in VERBS.items():
        if verb.access not in ABOUT or name == "estop" or name.startswith("episodes."):
            continue
        routes.add_api_route(
            path_of(name),
            _bare(name) if verb.request is schemas.Nothing else _with_body(name, verb.request),
            methods=["POST"],
            operation_id=name,
            tags=[name.partition(".")[0] if "." in name else "arm"],
            summary=verb.summary,
            description=ABOUT[verb.access],
            response_model=verb.reply,
            responses=COMMON,
        )
    return routes


def path_of(verb: str) -> str:
    return f"/api/v1/{verb.replace('.', '/')}"


async def _estop(surface: Shared, visitor: Who, body: schemas.Estop | None = None) -> dict[str, Any]:
    """Stop now and latch. Whoever may see the arm may stop it: no lease is needed, and nobody else's is in the way.

    Goes straight to the arm process, also when the agent hangs. It is a software stop, and no substitute for the switch
    of the arm's power supply.
    """
    visitor.require(Access.STOP)
    cause = f"{(body or schemas.Estop()).cause} ({visitor.name})"[: schemas.CAUSE_MAX_CHARS]
    try:
        return await stop(surface.config.paths, surface.daemon, surface.clock, cause)
    finally:
        surface.live.look()


def _bare(verb: str) -> Callable[..., Awaitable[JSONResponse]]:
    async def act(
        surface: Shared, visitor: Who, body: schemas.Nothing | None = None, lease: LeaseHeader = None
    ) -> JSONResponse:
        answer = await ask(surface, visitor, verb, body, lease)
        surface.live.look()
        return JSONResponse(answer)

    return act


def _with_body(verb: str, arguments: type[schemas.Request]) -> Callable[..., Awaitable[JSONResponse]]:
    async def act(
        surface: Shared,
        visitor: Who,
        body: arguments,  # type: ignore[valid-type] # FastAPI reads it at run time
        lease: LeaseHeader = None,
    ) -> JSONResponse:
        answer = await ask(surface, visitor, verb, body, lease)
        surface.live.look()
        return JSONResponse(answer)

    return act
