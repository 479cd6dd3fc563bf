"""Control: one lease, for one page or program at a time."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from agent.api.http.problems import COMMON
from agent.api.http.surface import LeaseHeader, Shared, Who
from agent.api.schemas import Access, Reply, Request

routes = APIRouter(prefix="/api/v1/lease", tags=["control"], responses=COMMON)


class Take(Request):
    take_over: Annotated[bool, Field(description="Also when somebody else has it. They are told.")] = False


class Taken(Reply):
    token: Annotated[str, Field(description="Goes into the header X-Lease of everything that moves the arm.")]
    owner: str
    ttl_s: Annotated[float, Field(description="Renew it several times within this; else the arm holds.")]


class Renewed(Reply):
    ttl_s: float


class Released(Reply):
    pass


@routes.post("", operation_id="lease.take", response_model=Taken)
async def take(surface: Shared, visitor: Who, body: Take | None = None) -> dict[str, Any]:
    """Take control. Everything that moves the arm needs it; the emergency stop does not."""
    visitor.require(Access.MOVE)
    wanted = {
        "owner": visitor.name,
        "ttl_s": surface.settings.lease_s,
        "take_over": (body or Take()).take_over,
    }
    answer = await surface.daemon.call("lease.take", wanted)
    surface.live.look()
    return answer


@routes.post("/renew", operation_id="lease.renew", response_model=Renewed)
async def renew(surface: Shared, visitor: Who, lease: LeaseHeader = None) -> dict[str, Any]:
    """Say that somebody is still there. When this stops coming, the arm holds within half a second."""
    visitor.require(Access.MOVE)
    return await surface.daemon.call("lease.renew", {"token": lease})


@routes.post("/release", operation_id="lease.release", response_model=Released)
async def release(surface: Shared, visitor: Who, lease: LeaseHeader = None) -> dict[str, Any]:
    """Give control back. Motion that was begun with it ends in a hold."""
    visitor.require(Access.MOVE)
    answer = await surface.daemon.call("lease.release", {"token": lease})
    surface.live.look()
    return answer
