"""The engines that a policy server keeps loaded, by name and hash of their bundles. Owned by one thread."""

from dataclasses import dataclass
from typing import Final

from agent.clock import Clock, nanoseconds
from agent.errors import Refused
from agent.inference.engine import Engine

PLACES: Final = 2
"""A full-size SmolVLA takes 1 to 2 GB. Two, so that a policy can be replaced by its successor without a pause."""

IN_USE_S: Final = 60.0
"""An engine that was asked within this time is not given up for another: two stations would starve each other."""

type Key = tuple[str, str]
"""Name and hash of a bundle."""


@dataclass
class _Place:
    engine: Engine
    used_ns: int


class Shelf:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._places: dict[Key, _Place] = {}

    def get(self, key: Key) -> Engine | None:
        place = self._places.get(key)
        if place is None:
            return None
        place.used_ns = self._clock.now_ns()
        return place.engine

    def put(self, key: Key, engine: Engine) -> None:
        """Only after `make_room`."""
        self._places[key] = _Place(engine, self._clock.now_ns())

    def make_room(self) -> Engine | None:
        """Take out an engine, to be closed, if all places are taken. Raises Refused when all are in use."""
        if len(self._places) < PLACES:
            return None
        oldest = min(self._places, key=lambda key: self._places[key].used_ns)
        if self._clock.now_ns() - self._places[oldest].used_ns < nanoseconds(IN_USE_S):
            names = " and ".join(name for name, _ in self._places)
            raise Refused(
                f"The server has room for {PLACES} policies, and {names} are in use.",
                "Wait for a minute without them, or run a second server.",
            )
        return self._places.pop(oldest).engine

    def clear(self) -> list[Engine]:
        """Take out all, to be closed."""
        engines = [place.engine for place in self._places.values()]
        self._places.clear()
        return engines
