"""Which camera frame belongs to which tick: the newest one that existed when the joints were read.

That is what a policy would have seen at that moment. One exception: where that frame would be a repeat of the
previous row's, and the next one came within `NEAR_NS`, the next one is taken. A camera and a loop of the same rate
drift through each other's phase, and while they meet, jitter of a millisecond would make half of the rows repeats
and drop as many frames. A frame's capture time is when the driver handed it over, so what it shows is older anyway.

Pure: no clock, no sockets, no files.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from agent.clock import NS_PER_MS
from agent.messages import Tick

IN_FLIGHT_NS: Final = 150 * NS_PER_MS
"""How long a tick waits for a frame that was captured before it but has not arrived: four frames at 30 fps."""

NEAR_NS: Final = 8 * NS_PER_MS
"""A quarter of a period at 30 fps: well above the jitter of a USB camera, well below its exposure and transfer."""

SPARE_FRAMES: Final = 8
"""Frames kept per camera while no tick waits; a tick can be this many frames older than the newest one."""


@dataclass(frozen=True, slots=True)
class Shot[F]:
    """One frame as it arrived. `frame` is whatever the caller keeps the pixels in."""

    seq: int
    capture_ns: int
    frame: F


@dataclass(frozen=True, slots=True)
class Seen[F]:
    """A camera's frame in one row. `repeat`: the previous row had it too, or it was older than the camera allows.

    `age_ns` is negative, by `NEAR_NS` at most, for a frame that was taken to avoid a repeat.
    """

    shot: Shot[F]
    age_ns: int
    repeat: bool


@dataclass(frozen=True, slots=True)
class Aligned[F]:
    tick: Tick
    seen: dict[str, Seen[F]]


class Aligner[F]:
    """Pairs ticks with frames, in order. Every row has a frame of every camera."""

    def __init__(self, stale_ns: dict[str, int], wait_ns: int = IN_FLIGHT_NS) -> None:
        """`stale_ns`: for each camera, the age above which its newest frame counts as a repeat."""
        self._stale_ns = stale_ns
        self._wait_ns = wait_ns
        self._shots: dict[str, deque[Shot[F]]] = {camera: deque() for camera in stale_ns}
        self._ticks: deque[Tick] = deque()
        self._previous: dict[str, int] = {}
        self.unseen = 0
        """Ticks dropped because a camera had not delivered any frame yet."""

    def add_frame(self, camera: str, shot: Shot[F]) -> None:
        """Frames of one camera arrive in order; one that is not newer than the last is ignored."""
        shots = self._shots[camera]
        if shots and shot.capture_ns <= shots[-1].capture_ns:
            return
        shots.append(shot)
        if not self._ticks:
            while len(shots) > SPARE_FRAMES:
                shots.popleft()

    def add_tick(self, tick: Tick) -> None:
        self._ticks.append(tick)

    def newest_ns(self, camera: str) -> int | None:
        """Capture time of the camera's newest frame."""
        shots = self._shots[camera]
        return shots[-1].capture_ns if shots else None

    @property
    def waiting(self) -> int:
        return len(self._ticks)

    def restart(self) -> None:
        """Forget waiting ticks and what was used before; keep the frames."""
        self._ticks.clear()
        self._previous.clear()
        self.unseen = 0

    def rows(self, now_ns: int) -> Iterator[Aligned[F]]:
        """Every row that is settled: no earlier frame can still arrive, or it has been waited for long enough."""
        while self._ticks and self._settled(self._ticks[0], now_ns):
            row = self._row(self._ticks.popleft())
            if row is None:
                self.unseen += 1
            else:
                yield row

    def _settled(self, tick: Tick, now_ns: int) -> bool:
        if now_ns - tick.read_ns >= self._wait_ns:
            return True
        # A camera's frames come in order: once a later one is here, no earlier one is under way.
        return all(shots and shots[-1].capture_ns > tick.read_ns for shots in self._shots.values())

    def _row(self, tick: Tick) -> Aligned[F] | None:
        seen: dict[str, Seen[F]] = {}
        for camera, shots in self._shots.items():
            while len(shots) > 1 and shots[1].capture_ns <= tick.read_ns:
                shots.popleft()
            if not shots:
                return None
            again = self._previous.get(camera) == shots[0].capture_ns
            if shots[0].capture_ns > tick.read_ns and not again:  # the previous row may have had it ahead of its time
                return None
            if again and len(shots) > 1 and shots[1].capture_ns <= tick.read_ns + NEAR_NS:
                shots.popleft()
                again = False
            shot = shots[0]
            age_ns = tick.read_ns - shot.capture_ns
            seen[camera] = Seen(shot, age_ns, again or age_ns > self._stale_ns[camera])
        self._previous = {camera: item.shot.capture_ns for camera, item in seen.items()}
        return Aligned(tick, seen)
