"""What the routes share, and how a route asks for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Request

from agent.api import schemas
from agent.api.http.access.visitors import NOBODY, Visitor, Visitors
from agent.api.http.live import Live
from agent.api.http.previews import Previews
from agent.api.local import AsyncClient
from agent.api.schemas import VERBS, Access
from agent.clock import Clock
from agent.config import Http, StationConfig
from agent.errors import AgentError

ANSWER_S: Final = 10.0

SLOW_S: Final[dict[str, float]] = {"record.stop": 60.0, "record.discard": 60.0, "task.stop": 60.0, "task.start": 60.0}
"""A commit on a slow card; a policy that is being loaded says every 0.2 s how far it is."""


@dataclass(frozen=True)
class Surface:
    """One HTTP surface of one station."""

    config: StationConfig
    settings: Http
    clock: Clock
    daemon: AsyncClient
    operator: AsyncClient  # asks as somebody at this machine does: without a lease
    visitors: Visitors
    live: Live
    previews: Previews


def the_surface(request: Request) -> Surface:
    surface = request.app.state.surface
    assert isinstance(surface, Surface)  # noqa: S101 - set by `create`
    return surface


def the_visitor(request: Request) -> Visitor:
    visitor = getattr(request.state, "visitor", NOBODY)
    assert isinstance(visitor, Visitor)  # noqa: S101 - set by the gate
    return visitor


def the_welcome(request: Request) -> Callable[[], bool]:
    """Whether who looks at a stream still may: a token can be revoked and a session end while it lasts."""

    def still() -> bool:
        try:
            request.state.known().require(Access.LOOK)
        except AgentError:
            return False
        return True

    return still


Shared = Annotated[Surface, Depends(the_surface)]
Who = Annotated[Visitor, Depends(the_visitor)]
Welcome = Annotated[Callable[[], bool], Depends(the_welcome)]
LeaseHeader = Annotated[str | None, Header(alias="X-Lease", description="The token that taking control returned.")]


def may(access: Access) -> Any:
    """For `dependencies=` of a route: refuses whoever may not."""

    def check(visitor: Who) -> None:
        visitor.require(access)

    return Depends(check)


LOOK: Final = may(Access.LOOK)


async def ask(
    surface: Surface, visitor: Visitor, verb: str, body: schemas.Request | None = None, lease: str | None = None
) -> dict[str, Any]:
    """Have the daemon carry out a verb for this visitor. Raises what it answers."""
    visitor.require(VERBS[verb].access)
    if verb == "reset" and (visitor.local or surface.settings.remote_reset):
        # The daemon clears an emergency stop for this machine's operator only; whether this is one is known here.
        await surface.daemon.call("lease.renew", {"token": lease or ""})
        return await surface.operator.call(verb)
    args = body.args() if body else {}
    if lease is not None:
        args["lease"] = lease
    return await surface.daemon.call(verb, args, SLOW_S.get(verb, ANSWER_S))
