"""A recording session: some episodes of one task, with time between them to put things back."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from agent.errors import AgentError, Refused
from agent.events import EventKind, EventLog
from agent.messages import (
    DiscardEpisode,
    EpisodeResult,
    EpisodeSource,
    FinishEpisode,
    RecorderReport,
    RecorderState,
    StartEpisode,
)
from agent.telemetry import logger

PROGRESS_S: Final = 0.5
"""How often waiting clients hear about a running session."""


class Phase(StrEnum):
    EPISODE = "episode"
    RESET = "reset"  # a person puts things back


@dataclass(frozen=True)
class Plan:
    """What `record start` asked for. `episode_s` None: until stopped."""

    task: str
    episodes: int = 1
    episode_s: float | None = None
    reset_s: float = 5.0
    source: EpisodeSource = EpisodeSource.TELEOP


type AskRecorder = Callable[[StartEpisode | FinishEpisode | DiscardEpisode], Awaitable[RecorderReport]]


class Session:
    """Runs a plan against the recorder. The station feeds it every recorder report through `heard`."""

    def __init__(self, plan: Plan, ask: AskRecorder, events: EventLog) -> None:
        self.plan = plan
        self.phase = Phase.EPISODE
        self.done: list[EpisodeResult] = []
        self.problem = ""
        self._ask = ask
        self._events = events
        self._report: RecorderReport | None = None
        self._changed = asyncio.Condition()
        self._again = False
        self._end = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._running_since_ns = 0

    async def start(self) -> None:
        """Start the first episode; raises what the recorder answers. The rest goes on by itself."""
        await self._begin()
        self._events.publish(
            EventKind.RECORDING, f"Recording {self.plan.task!r} began.", began=True, **dataclasses.asdict(self.plan)
        )
        self._task = asyncio.create_task(self._run(), name="recording session")

    @property
    def over(self) -> bool:
        return self._task is not None and self._task.done()

    def status(self) -> dict[str, Any]:
        report = self._report
        recording = report is not None and report.state is RecorderState.RECORDING
        return {
            "task": self.plan.task,
            "source": self.plan.source,
            "phase": self.phase,
            "episode": len(self.done) + 1,
            "episodes": self.plan.episodes,
            "frames": report.frames if report and recording else 0,
            "seconds": report.seconds if report and recording else 0.0,
            "repeats": report.repeats if report and recording else {},
            "committed": sum(result.outcome == "committed" for result in self.done),
        }

    def summary(self) -> dict[str, Any]:
        """What the session came to."""
        return {
            "task": self.plan.task,
            "problem": self.problem,
            "results": [_told(result) for result in self.done],
        }

    async def heard(self, report: RecorderReport) -> None:
        async with self._changed:
            self._report = report
            self._changed.notify_all()

    async def stop(self, success: bool | None = None) -> None:
        """Commit the running episode and end the session; returns when it is readable."""
        self._end.set()
        if self.phase is Phase.EPISODE:
            with contextlib.suppress(Refused):  # it ended by itself in this very moment
                await self._ask(FinishEpisode(success))
        await self.wait()

    async def discard(self, cause: str) -> None:
        """Drop the running episode and end the session. Committed episodes stay."""
        self._end.set()
        if self.phase is Phase.EPISODE:
            await self._ask(DiscardEpisode(cause))
        await self.wait()

    async def again(self) -> None:
        """Drop the running episode and record it anew after the reset time."""
        if self.phase is not Phase.EPISODE:
            raise Refused("No episode is being recorded right now.", "Wait until the next one starts.")
        self._again = True
        await self._ask(DiscardEpisode("recorded again"))

    async def wait(self) -> None:
        """Until the session is over."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _begin(self) -> None:
        self.phase = Phase.EPISODE
        started = await self._ask(StartEpisode(self.plan.task, self.plan.source, self.plan.episode_s))
        self._running_since_ns = started.at_ns
        self._report = started

    async def _run(self) -> None:
        try:
            while True:
                result = await self._episode_end()
                logger.info(
                    "episode ended", task=self.plan.task, outcome=result.outcome, episode=result.episode,
                    frames=result.frames, reason=result.reason,
                )  # fmt: skip
                self._events.publish(EventKind.EPISODE, _sentence(result), **_told(result))
                if self._again:
                    self._again = False
                else:
                    self.done.append(result)
                if len(self.done) >= self.plan.episodes or self._end.is_set():
                    return
                self.phase = Phase.RESET
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._end.wait(), self.plan.reset_s)
                if self._end.is_set():
                    return
                await self._begin()
        except AgentError as error:
            self.problem = str(error)
            logger.error("recording session ended early", problem=self.problem)
        finally:
            ended = f"ended early: {self.problem}" if self.problem else "ended."
            self._events.publish(
                EventKind.RECORDING, f"Recording {self.plan.task!r} {ended}", began=False, **self.summary()
            )

    async def _episode_end(self) -> EpisodeResult:
        """Wait until the recorder is ready again; what became of the episode."""
        async with self._changed:
            await self._changed.wait_for(self._ended)
        assert self._report is not None  # noqa: S101 - _ended is only true with a report
        return self._report.last or EpisodeResult(
            None, self.plan.task, 0, "salvaged", "the recorder died; see `so-agent episodes list`"
        )

    def _ended(self) -> bool:
        report = self._report
        return report is not None and report.at_ns > self._running_since_ns and report.state is RecorderState.READY


def _told(result: EpisodeResult) -> dict[str, Any]:
    return {
        "episode": result.episode,
        "frames": result.frames,
        "outcome": result.outcome,
        "reason": result.reason,
        "repeats": result.repeats,
        "stop_to_readable_s": result.stop_to_readable_s,
    }


def _sentence(result: EpisodeResult) -> str:
    which = "An episode" if result.episode is None else f"Episode {result.episode}"
    return f"{which} of {result.task!r} was {result.outcome}{f': {result.reason}' if result.reason else ''}."
