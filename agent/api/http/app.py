"""The HTTP application of one station."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware import Middleware

from agent import __version__
from agent.api.http import problems
from agent.api.http.access.gate import Gate
from agent.api.http.access.visitors import Visitors
from agent.api.http.live import Live
from agent.api.http.page import Page
from agent.api.http.previews import Previews
from agent.api.http.routes import cameras, episodes, federation, lease, policies, session, station, verbs
from agent.api.http.surface import Surface
from agent.api.local import AsyncClient
from agent.api.schemas import Problem
from agent.clock import Clock
from agent.config import Http, StationConfig
from agent.telemetry import logger

DESCRIPTION = """Everything that `so-agent` can do, over HTTP.

On the station's own machine nothing is needed to ask. From elsewhere, send `Authorization: Bearer TOKEN` with a token
from `so-agent token create`. What moves the arm needs control besides: take the lease, send its token as `X-Lease`,
and renew it. The emergency stop needs no lease.

Errors are `application/problem+json`, with a sentence that says what is wrong and a hint that says what to do.
"""


def create(config: StationConfig, settings: Http, clock: Clock) -> FastAPI:
    """The application; its background work runs while it is served."""
    daemon = AsyncClient(config.paths.agent_socket, via="http")
    surface = Surface(
        config=config,
        settings=settings,
        clock=clock,
        daemon=daemon,
        operator=AsyncClient(config.paths.agent_socket),
        visitors=Visitors(settings, config.paths, clock),
        live=Live(daemon, config.paths, clock),
        previews=Previews(config, settings, clock),
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        work = [
            asyncio.create_task(surface.live.run(), name="live"),
            asyncio.create_task(surface.previews.run(), name="previews"),
            asyncio.create_task(daemon.stay_alive("web"), name="alive"),
        ]
        for task in work:
            task.add_done_callback(_end_when_failed)
        yield
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)

    app = FastAPI(
        title="so-agent",
        version=__version__,
        description=DESCRIPTION,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # these two fetch their scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        middleware=[Middleware(Gate, settings=settings, visitors=surface.visitors)],
    )
    app.state.surface = surface
    app.openapi = lambda: _described(app)  # type: ignore[method-assign] # FastAPI's documented way to extend it
    problems.install(app)
    for routes in (
        station.routes,
        session.routes,
        lease.routes,
        verbs.router(),
        cameras.routes,
        episodes.routes,
        policies.routes,
        federation.routes,
        Page().router(),
    ):
        app.include_router(routes)
    return app


def _end_when_failed(task: asyncio.Task[None]) -> None:
    """A page without its stream only looks alive: leave, to be started again."""
    if not task.cancelled() and (error := task.exception()):
        logger.error("background work failed, the process ends", work=task.get_name(), error=repr(error))
        signal.raise_signal(signal.SIGTERM)


def _described(app: FastAPI) -> dict[str, Any]:
    """The description of the API, with the form of its problems, which no route returns by itself."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        schemas["Problem"] = Problem.model_json_schema()
        app.openapi_schema = made
    return app.openapi_schema
