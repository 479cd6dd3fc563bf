"""The recording session under way, and what a person may ask of it and of the episodes."""

import asyncio
import contextlib
from typing import Any, Final

import msgspec

from agent import requests
from agent.clock import Clock, nanoseconds
from agent.config import StationConfig
from agent.errors import AgentError, DeviceFault, Refused
from agent.events import EventKind, EventLog
from agent.links import Links
from agent.messages import HideEpisode, MarkEpisode, RecorderReport
from agent.requests import Request
from agent.session import PROGRESS_S, Plan, Session
from agent.telemetry import logger

PATIENCE_S: Final = 2.0
"""A recorder or an arm that has just been restarted hears the other within a few ticks."""

RETRY_S: Final = 0.1


class Recordings:
    """At most one session at a time."""

    def __init__(self, config: StationConfig, links: Links, events: EventLog, clock: Clock) -> None:
        self._dataset = config.paths.dataset
        self._links = links
        self._events = events
        self._clock = clock
        self._session: Session | None = None

    @property
    def session(self) -> Session | None:
        """The one under way."""
        return self._session if self._session and not self._session.over else None

    async def heard(self, report: RecorderReport) -> None:
        if self._session is not None:
            await self._session.heard(report)

    async def begin(self, plan: Plan) -> Session:
        """Record. Raises Refused while something is being recorded, and what the recorder answers."""
        if self.session:
            raise Refused(f"Already recording {self.session.plan.task!r}.", "Run `so-agent record stop` first.")
        session = self._session = Session(plan, self._links.ask_recorder, self._events)
        try:
            await self._start_patiently(session)
        except AgentError:
            self._session = None
            raise
        return session

    async def _start_patiently(self, session: Session) -> None:
        """A process that was just restarted may not hear its neighbour yet: that is no reason to send a person away."""
        give_up_ns = self._clock.now_ns() + nanoseconds(PATIENCE_S)
        while True:
            try:
                return await session.start()
            except DeviceFault:
                if self._clock.now_ns() > give_up_ns:
                    raise
            await asyncio.sleep(RETRY_S)

    async def end(self, cause: str, success: bool | None = None) -> None:
        """Motion ended under a recording: what was recorded up to here is kept."""
        if self.session:
            logger.warning("recording ends because the arm stopped", cause=cause)
            with contextlib.suppress(AgentError):
                await self.session.stop(success)

    # --- verbs ---

    async def follow(self, session: Session, request: Request) -> dict[str, Any]:
        """Tell how it goes until it is over."""
        while not session.over:
            await request.progress(session.status())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(session.wait(), PROGRESS_S)
        return session.summary()

    async def stop(self, request: Request) -> dict[str, Any]:
        success = requests.success(request.args)
        requests.only(request.args)
        session = self._running()
        await session.stop(success)
        return session.summary()

    async def discard(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        session = self._running()
        await session.discard("discarded by the operator")
        return session.summary()

    async def again(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        session = self._running()
        await session.again()
        return {"recording": session.status()}

    def _running(self) -> Session:
        if self.session is None:
            raise Refused("Nothing is being recorded.", 'Start with `so-agent record start --task "..."`.')
        return self.session

    async def list(self, request: Request) -> dict[str, Any]:
        deleted = requests.flag(request.args, "deleted")
        requests.only(request.args)
        return {"episodes": msgspec.to_builtins(await asyncio.to_thread(self._index().list, deleted))}

    async def show(self, request: Request) -> dict[str, Any]:
        episode = requests.episode(request.args)
        requests.only(request.args)
        return {"episode": msgspec.to_builtins(await asyncio.to_thread(self._index().show, episode))}

    async def mark(self, request: Request) -> dict[str, Any]:
        episode, success = requests.episode(request.args), request.args.pop("success", None)
        requests.only(request.args)
        await self._links.ask_recorder(MarkEpisode(episode, success))
        return {"episode": msgspec.to_builtins(await asyncio.to_thread(self._index().show, episode))}

    async def delete(self, request: Request) -> dict[str, Any]:
        return await self._hide(request, deleted=True)

    async def restore(self, request: Request) -> dict[str, Any]:
        return await self._hide(request, deleted=False)

    async def _hide(self, request: Request, deleted: bool) -> dict[str, Any]:
        episode = requests.episode(request.args)
        requests.only(request.args)
        await self._links.ask_recorder(HideEpisode(episode, deleted))
        done = "deleted" if deleted else "restored"
        self._events.publish(EventKind.EPISODE, f"Episode {episode} was {done}.", episode=episode, outcome=done)
        return {"episode": msgspec.to_builtins(await asyncio.to_thread(self._index().show, episode))}

    def _index(self) -> Any:
        from agent.robot.recording.index import DatasetIndex

        return DatasetIndex(self._dataset)
