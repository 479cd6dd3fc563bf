"""What the page sees happen: one reader of the station for all viewers, the newest value for the slow ones.

Nobody watches: the station is asked for nothing but its events. Somebody does: its status twice a second and at every
event, and the joints ten times a second straight from the arm process.
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import msgspec

from agent.api.http.problems import TooMany
from agent.api.local import AsyncClient
from agent.clock import NS_PER_MS, Clock
from agent.errors import AgentError
from agent.messages import Drive, Source, Tick
from agent.paths import Paths
from agent.transport import AsyncSubscriber, topic

STATUS_S: Final = 0.5
"""The arm reports twice a second; what cannot wait for that comes with an event."""

ANSWER_S: Final = 2.0

JOINTS_S: Final = 0.1
"""Ten a second look fluent, and are a third of what is measured."""

BEAT_S: Final = 1.0
"""Something is sent at least this often: a page that hears nothing for longer knows that it looks at the past."""

BACKLOG_EVENTS: Final = 200
"""What a viewer may be behind; the browser says how far it got, and is given the rest when it comes back."""

MAX_VIEWERS: Final = 32

TICKS: Final = topic(Tick(0, 0, 0, Drive.LIMP, Source.NONE))


class Viewer:
    """One stream. Holds the newest status and joints, and the events that were not sent yet."""

    def __init__(self) -> None:
        self._newest: dict[str, str] = {}
        self._events: deque[tuple[int, str]] = deque(maxlen=BACKLOG_EVENTS)
        self._there = asyncio.Event()

    def show(self, kind: str, data: str) -> None:
        self._newest[kind] = data
        self._there.set()

    def happened(self, seq: int, data: str) -> None:
        self._events.append((seq, data))
        self._there.set()

    async def next(self) -> tuple[list[tuple[int, str]], dict[str, str]]:
        """Events (number, JSON), and the newest of everything else (kind, JSON). Empty after BEAT_S of silence."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._there.wait(), BEAT_S)
        self._there.clear()
        events, newest = list(self._events), self._newest
        self._events.clear()
        self._newest = {}
        return events, newest


class Live:
    """Reads the station while somebody watches."""

    def __init__(self, daemon: AsyncClient, paths: Paths, clock: Clock) -> None:
        self._daemon = daemon
        self._paths = paths
        self._clock = clock
        self._viewers: set[Viewer] = set()
        self._watched = asyncio.Event()
        self._look = asyncio.Event()
        self._status: str | None = None

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_events(), name="events")
            group.create_task(self._look_at_status(), name="status")
            group.create_task(self._follow_joints(), name="joints")

    def require_room(self) -> None:
        """Raises TooMany when there are MAX_VIEWERS already."""
        if len(self._viewers) >= MAX_VIEWERS:
            raise TooMany(f"{MAX_VIEWERS} pages are watching already.", "Close one of them.", BEAT_S)

    @contextlib.contextmanager
    def viewer(self) -> Iterator[Viewer]:
        """A stream of its own, as long as somebody looks at it."""
        viewer = Viewer()
        self._viewers.add(viewer)
        self._watched.set()
        self._look.set()
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)
            if not self._viewers:
                self._watched.clear()

    def look(self) -> None:
        """Somebody changed something: show it at once."""
        self._look.set()

    async def _follow_events(self) -> None:
        async with contextlib.aclosing(self._daemon.events()) as told:
            async for message in told:
                if event := message.get("event"):
                    self._look.set()
                    for viewer in self._viewers:
                        viewer.happened(event["seq"], json.dumps(event))
                elif "running" in message:
                    self._look.set()

    async def _look_at_status(self) -> None:
        while True:
            await self._watched.wait()
            self._look.clear()
            status = json.dumps(await self._ask())
            for viewer in self._viewers:
                viewer.show("status", status)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), STATUS_S)

    async def _ask(self) -> dict[str, Any]:
        try:
            return {"running": True, "status": await self._daemon.call("status", timeout_s=ANSWER_S)}
        except AgentError as error:
            return {"running": False, "code": error.code, "message": error.message, "hint": error.hint}

    async def _follow_joints(self) -> None:
        while True:
            await self._watched.wait()
            async for joints in self._joints():
                for viewer in self._viewers:
                    viewer.show("joints", joints)

    async def _joints(self) -> AsyncIterator[str]:
        """What the arm measures and is sent, while somebody watches."""
        decoder = msgspec.msgpack.Decoder(Tick)
        with contextlib.closing(AsyncSubscriber(self._paths.arm_pub, topic=TICKS, newest=True)) as subscriber:
            while self._watched.is_set():
                try:
                    async with asyncio.timeout(BEAT_S):
                        tick = decoder.decode((await subscriber.receive())[0])
                except TimeoutError:
                    continue  # no arm process: the page sees that nothing comes
                yield json.dumps(
                    {
                        "age_ms": round((self._clock.now_ns() - tick.read_ns) / NS_PER_MS, 1),
                        "drive": tick.drive,
                        "source": tick.source,
                        "measured": tick.measured,
                        "sent": tick.sent,
                        "leader": tick.leader,
                        "limited": sorted({limit.joint for limit in tick.limits}),
                    }
                )
                await asyncio.sleep(JOINTS_S)  # what comes meanwhile is replaced by what comes after it
