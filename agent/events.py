"""What happened on this station: a short memory of numbered events, and whoever listens for the next ones.

The memory is bounded and so is every listener's queue. A listener that is slow loses its oldest events and is told how
many; nobody can make the station wait or grow.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from agent.clock import Clock

MEMORY_EVENTS: Final = 1000
"""A day of ordinary work; some hundred kilobytes."""

QUEUE_EVENTS: Final = 200
"""What one listener may be behind. A busy minute has ten."""


type Progress = Callable[[dict[str, Any]], Awaitable[None]]

BEAT_S: Final = 2.0
"""A line at least this often to those who follow: they see that the agent lives, it sees that they do."""


class EventKind(StrEnum):
    MODE = "mode"
    RECORDING = "recording"  # a session began or ended
    EPISODE = "episode"  # committed, discarded, rejected or salvaged
    TASK = "task"
    CHILD = "child"  # a process ended, or was given up
    POLICY = "policy"
    CAMERA = "camera"
    FEDERATION = "federation"
    LEASE = "lease"


class Event(msgspec.Struct, frozen=True):
    """`text` is a sentence for people; `data` holds the same for programs."""

    seq: int
    at: str  # ISO 8601, wall time, UTC
    kind: EventKind
    text: str
    data: dict[str, Any] = {}


class Listener:
    """One who follows: what happened since it began, oldest first."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque(maxlen=QUEUE_EVENTS)
        self._there = asyncio.Event()
        self._lost = 0

    def hear(self, event: Event) -> None:
        self._lost += len(self._waiting) == self._waiting.maxlen
        self._waiting.append(event)
        self._there.set()

    async def next(self) -> tuple[int, Event]:
        """How many were lost just before, and the next event."""
        await self._there.wait()
        event = self._waiting.popleft()
        lost, self._lost = self._lost, 0
        if not self._waiting:
            self._there.clear()
        return lost, event


class EventLog:
    """The station's memory. Only its own event loop may touch it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._memory: deque[Event] = deque(maxlen=MEMORY_EVENTS)
        self._listeners: set[Listener] = set()
        # The microseconds of the start: larger than any number of an earlier run, for no run has an event every
        # microsecond, and exact in JavaScript for two centuries. So a listener that comes back after a restart only
        # has to say what it heard last.
        self._first = self._next = round(clock.wall_s() * 1_000_000)

    @property
    def last(self) -> int:
        """The number of the newest event; before the first one, the number before it."""
        return self._next - 1

    def publish(self, kind: EventKind, text: str, /, **data: Any) -> Event:
        at = datetime.fromtimestamp(self._clock.wall_s(), UTC).isoformat(timespec="milliseconds")
        event = Event(self._next, at, kind, f"{text.rstrip('.')}.", data)  # reasons end with a full stop, or do not
        self._next += 1
        self._memory.append(event)
        for listener in self._listeners:
            listener.hear(event)
        return event

    def since(self, seq: int) -> tuple[int, list[Event]]:
        """How many events after `seq` are forgotten, and those that are not.

        A number that was not given out yet comes from before a restart with the clock set back: everything is new then.
        """
        known = seq if seq < self._next else 0
        events = [event for event in self._memory if event.seq > known]
        oldest = self._memory[0].seq if self._memory else self._next
        return max(0, oldest - max(known + 1, self._first)), events

    async def tell(
        self, since: int, follow: bool, progress: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> dict[str, Any]:
        """What is remembered since an event. With `follow`: tell that, then everything that comes, for ever."""
        listener = self.follow()
        try:
            lost, events = self.since(since)
            if not follow:
                return {"events": msgspec.to_builtins(events), "last": self.last, "lost": lost}
            while True:
                if lost:
                    await progress({"lost": lost})
                for event in events:
                    await progress({"event": msgspec.to_builtins(event)})
                try:
                    lost, event = await asyncio.wait_for(listener.next(), BEAT_S)
                    events = [event]
                except TimeoutError:
                    lost, events = 0, []
                    await progress({"last": self.last})
        finally:
            self.unfollow(listener)

    def follow(self) -> Listener:
        """A listener for what comes from now on. Give it back to `unfollow`."""
        listener = Listener()
        self._listeners.add(listener)
        return listener

    def unfollow(self, listener: Listener) -> None:
        self._listeners.discard(listener)
