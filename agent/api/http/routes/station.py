"""The station as a whole: its status, what happens, whether it is well."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST

from agent.api.http.diagnostics import bundle
from agent.api.http.metrics import exposition
from agent.api.http.problems import COMMON
from agent.api.http.surface import LOOK, Shared, Surface, Welcome, Who, ask
from agent.api.schemas import Reply, Status
from agent.errors import AgentError, NotRunning

routes = APIRouter(tags=["station"])

HEALTH_S: Final = 2.0

MAX_EVENT: Final = 2**53 - 1
"""Numbers of events are milliseconds; this is what JSON and JavaScript keep exactly."""

STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Server-sent events: `status`, `joints`, `event` (numbered), `beat`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}

ZIP: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "A zip file.",
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}

EventNumber = Annotated[int, Query(ge=0, le=MAX_EVENT, description="Only events after this one.")]


class Healthy(Reply):
    status: Literal["ok"]


class Happened(Reply):
    seq: int
    at: str
    kind: str
    text: str
    data: dict[str, Any]


class Events(Reply):
    events: list[Happened]
    last: int
    lost: int


@routes.get("/healthz", operation_id="healthz", response_model=Healthy, responses=COMMON)
async def healthz(surface: Shared) -> dict[str, Any]:
    """200 while the agent answers and its arm process makes progress; 503 otherwise. Needs no token."""
    status = await surface.daemon.call("status", timeout_s=HEALTH_S)
    if status["arm"] is None:
        raise NotRunning("The arm process does not run.", "It is being restarted; the log says why.")
    return {"status": "ok"}


@routes.get("/metrics", operation_id="metrics", dependencies=[LOOK], responses=COMMON, response_class=Response)
async def metrics(surface: Shared) -> Response:
    """The station in Prometheus' text format."""
    status = await surface.daemon.call("status")
    return Response(exposition(status), media_type=CONTENT_TYPE_LATEST)


@routes.get("/api/v1/status", operation_id="status", response_model=Status, responses=COMMON)
async def status(surface: Shared, visitor: Who) -> JSONResponse:
    """The whole station in one object, as `so-agent status --json`."""
    return JSONResponse(await ask(surface, visitor, "status"))


@routes.get("/api/v1/events", operation_id="events", dependencies=[LOOK], response_model=Events, responses=COMMON)
async def events(surface: Shared, since: EventNumber = 0) -> JSONResponse:
    """What happened, oldest first. The station remembers the last thousand events."""
    return JSONResponse(await surface.daemon.call("events", {"since": since}))


@routes.get(
    "/api/v1/diagnostics",
    operation_id="diagnostics",
    dependencies=[LOOK],
    response_class=Response,
    responses=COMMON | ZIP,
)
async def diagnostics(surface: Shared) -> Response:
    """What to attach to a question: status, events, settings without secrets, versions, the newest log lines."""
    status: dict[str, Any]
    events: dict[str, Any]
    try:
        status = await surface.daemon.call("status")
        events = await surface.daemon.call("events")
    except AgentError as error:  # that it does not answer is worth knowing, too
        status, events = {"problem": str(error)}, {}
    content = await asyncio.to_thread(bundle, surface.config, status, events)
    name = f"so-agent-{surface.config.station}.zip"
    return Response(
        content, media_type="application/zip", headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )


@routes.get(
    "/api/v1/live",
    operation_id="live",
    dependencies=[LOOK],
    response_class=StreamingResponse,
    responses=COMMON | STREAM,
)
async def live(
    surface: Shared,
    welcome: Welcome,
    since: Annotated[int | None, Query(ge=0, le=MAX_EVENT, description="As `Last-Event-ID`.")] = None,
    last_event_id: Annotated[str | None, Header(max_length=16, pattern=r"^\d*$")] = None,
) -> StreamingResponse:
    """Status, joints and events, until the token is revoked. Who comes back is given the events that were missed."""
    surface.live.require_room()  # once the answer has begun, it is too late to say so
    known = int(last_event_id) if last_event_id else since
    return StreamingResponse(_stream(surface, known, welcome), media_type="text/event-stream")


async def _stream(surface: Surface, since: int | None, welcome: Callable[[], bool]) -> AsyncIterator[str]:
    with surface.live.viewer() as viewer:
        last = since or 0
        yield "retry: 500\n\n"
        if since is not None:
            missed = await surface.daemon.call("events", {"since": since})
            for event in missed["events"]:
                last = event["seq"]
                yield _line("event", json.dumps(event), last)
        while welcome():
            happened, newest = await viewer.next()
            for seq, data in happened:
                if seq > last:
                    yield _line("event", data, seq)
            for kind, data in newest.items():
                yield _line(kind, data)
            if not happened and not newest:
                yield _line("beat", "{}")
            await asyncio.sleep(0)


def _line(kind: str, data: str, seq: int | None = None) -> str:
    number = f"id: {seq}\n" if seq is not None else ""
    return f"{number}event: {kind}\ndata: {data}\n\n"
