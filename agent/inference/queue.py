"""The action-chunk queue: a schedule on the task's own time.

Action i of a chunk belongs to `start_ns + i * period_ns` of **plan time**. Plan time runs with the clock while there
are actions and stands still while there are none: nothing moves then, so what a policy concludes from an observation
made meanwhile is still right when it comes. A policy anchors each chunk at the plan time of the tick whose joints it
saw. Actions whose time has passed are never executed, those that come early wait for theirs, and however long an
inference takes, its chunk is never late as a whole while the arm starves.

The newest chunk wins. Where it differs from the pose and the speed at which the one before was left, the difference
is kept as an offset and faded out: the emitted pose is the chunk's plus that offset. The **seam** of a tick is the
change of the offset in that tick, i.e. the step beyond what the chunk itself asks for, of the joint where it is
largest; it never exceeds `max_seam`. The fade takes longer instead.

Pure: no clock, no I/O. The arm's control thread calls `at` in every tick; the policy process mirrors the schedule with
`follow`. Poses in degrees, gripper in percent.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from agent.clock import NS_PER_S, nanoseconds
from agent.messages import JOINTS, Joints
from agent.policy_messages import Chunk

MAX_ACTIONS: Final = 1000
"""In one chunk. Policies predict 16 to 100."""

MAX_PERIOD_S: Final = 1.0
"""Between two actions. Slower than this is no control, but a mistaken unit."""

MAX_VALUE: Final = 1000.0
"""No joint has a value beyond this; a policy that says so is broken, and its chunk is not clamped but refused."""

MAX_AHEAD_S: Final = 10.0
"""A chunk may begin at most this long after the schedule ends. Plan time skips the hole, so it costs nothing."""

MAX_WAITING: Final = 16
"""Chunks that may wait for their time. Usually each is due at once."""

MAX_STEP_TICKS: Final = 2
"""Plan time goes on by at most this many control periods a call: an arm that was kept waiting does not catch up."""

PEAK: Final = 1.5
"""The steepest slope of the fade, relative to a straight line."""


class Verdict(StrEnum):
    """What became of a chunk that was offered."""

    TAKEN = "taken"
    GENERATION = "other generation"
    ORDER = "out of order"
    EXPIRED = "expired"
    AHEAD = "too far ahead"
    MALFORMED = "malformed"


class _Track:
    """The actions of one chunk as a line through plan time."""

    __slots__ = ("actions", "end_ns", "last", "period_ns", "start_ns")

    def __init__(self, chunk: Chunk) -> None:
        self.start_ns, self.period_ns, self.actions = chunk.start_ns, chunk.period_ns, chunk.actions
        self.last = len(chunk.actions) - 1
        self.end_ns = chunk.start_ns + len(chunk.actions) * chunk.period_ns

    def at(self, plan_ns: int) -> Joints:
        """Straight between two actions; the first one before it, the last one after it."""
        index, rest = divmod(plan_ns - self.start_ns, self.period_ns)
        if index < 0:
            return self.actions[0]
        if index >= self.last:
            return self.actions[self.last]
        if not rest:
            return self.actions[index]
        share = rest / self.period_ns
        return _joints([a + (b - a) * share for a, b in zip(self.actions[index], self.actions[index + 1], strict=True)])


class _Fade:
    """An offset that goes from a step and a slope smoothly to nothing, in position and in speed."""

    __slots__ = ("_slope", "_slope_s", "_step", "_step_s", "end_ns", "start_ns")

    def __init__(self, start_ns: int, step: Joints, step_s: float, slope: Joints, slope_s: float) -> None:
        self.start_ns = start_ns
        self._step, self._step_s = step, step_s
        self._slope, self._slope_s = slope, slope_s
        self.end_ns = start_ns + nanoseconds(max(step_s, slope_s))

    def at(self, plan_ns: int) -> Joints:
        """Cubic Hermite from (step, slope) to (0, 0). Each has its own duration: over a long one, a slope would
        first carry the arm far away."""
        since_s = max(0, plan_ns - self.start_ns) / NS_PER_S
        x = since_s / self._step_s if since_s < self._step_s else 1.0
        y = since_s / self._slope_s if since_s < self._slope_s else 1.0
        keep, carry = 1 - x * x * (3 - 2 * x), y * (1 - y) * (1 - y) * self._slope_s
        return _joints([a * keep + b * carry for a, b in zip(self._step, self._slope, strict=True)])


class ChunkQueue:
    """The schedule of one task at a time. Used by one thread."""

    def __init__(self, crossfade_s: float, max_seam: float, tick_s: float) -> None:
        """`max_seam` in degrees or percent a tick; `tick_s` is the period in which `at` is called."""
        self._crossfade_s = crossfade_s
        self._max_seam = max_seam
        self._tick_s = tick_s
        self._tick_ns = nanoseconds(tick_s)
        self.highest = 0  # generation that there was
        self.close()

    # --- a task ---

    def reset(self, generation: int) -> None:
        """Begin a task at plan time 0 with nothing scheduled. Raises ValueError for a generation that is not new."""
        if generation <= self.highest:
            raise ValueError(f"generation {generation} is not larger than {self.highest}")
        self.close()
        self.generation = self.highest = generation

    def close(self) -> None:
        """Forget the schedule; every chunk is of another generation from now on."""
        self.generation = 0
        self.plan_ns = 0
        self.starved = True  # there was no action at the last call
        self.seam = 0.0  # of the last merge, the largest so far
        self.seam_max = 0.0  # of all merges of this generation
        self._now_ns: int | None = None
        self._newest_seq = -1
        self._track: _Track | None = None
        self._waiting: list[_Track] = []  # taken, and due when their first actions are
        self._pose: Joints | None = None  # emitted at the last call
        self._before: Joints | None = None  # emitted at the call before, or held then
        self._moved_ns = 0  # between the two
        self._fade: _Fade | None = None
        self._offset: Joints = _NOTHING

    def offer(self, chunk: Chunk) -> Verdict:
        """Take a chunk into the schedule, or say why not. It has effect from the next call of `at` on."""
        if chunk.generation != self.generation or not self.generation:
            return Verdict.GENERATION
        if not _well_formed(chunk):
            return Verdict.MALFORMED
        newest = self._newest
        if chunk.seq <= self._newest_seq or (newest and chunk.start_ns < newest.start_ns):
            return Verdict.ORDER
        track = _Track(chunk)
        if track.end_ns <= self.plan_ns:
            return Verdict.EXPIRED
        horizon_ns = max(self.plan_ns, newest.end_ns if newest else 0) + nanoseconds(MAX_AHEAD_S)
        if track.start_ns > horizon_ns or len(self._waiting) >= MAX_WAITING:
            return Verdict.AHEAD
        self._newest_seq = chunk.seq
        self._waiting.append(track)
        return Verdict.TAKEN

    # --- time ---

    def at(self, now_ns: int, held: Joints) -> Joints | None:
        """The pose for this moment of the clock; None when there is no action: hold what was sent last.

        `held` is that pose, where a starved arm starts from. A call whose time does not advance changes nothing.
        """
        if self._now_ns is not None and now_ns <= self._now_ns:
            return self._pose
        step_ns = min(now_ns - self._now_ns, MAX_STEP_TICKS * self._tick_ns) if self._now_ns is not None else 0
        self._now_ns = now_ns
        return self._go(self.plan_ns if self.starved else self.plan_ns + step_ns, held)

    def follow(self, plan_ns: int, held: Joints) -> Joints | None:
        """Where `at` takes time from the clock, this takes it from an arm's tick: the same schedule in another place.

        Plan time never goes back: an older tick changes nothing.
        """
        if plan_ns < self.plan_ns:
            return self._pose
        pose = self._go(plan_ns, held)
        self.plan_ns = max(self.plan_ns, plan_ns)  # also where the mirror lacks a chunk
        return pose

    def _go(self, plan_ns: int, held: Joints) -> Joints | None:
        track = self._track
        over = track is None or plan_ns >= track.end_ns
        while self._waiting and (over or plan_ns >= self._waiting[0].start_ns):
            track = self._waiting.pop(0)
            plan_ns = max(plan_ns, track.start_ns)  # past the hole before it, if there is one
            over = plan_ns >= track.end_ns
        if track is not None and track is not self._track:
            self._merge(track, held)
            self._track = track
        if track is None or plan_ns >= track.end_ns:
            if track is not None:
                self.plan_ns = max(self.plan_ns, track.end_ns)
            self._pose, self.starved = None, True
            return None
        pose = track.at(plan_ns)
        if self._fade:
            pose = self._faded(self._fade, plan_ns, pose)
        self._before = held if self._pose is None else self._pose
        self._moved_ns = plan_ns - self.plan_ns
        self._pose, self.plan_ns, self.starved = pose, plan_ns, False
        return pose

    # --- merging ---

    def _merge(self, track: _Track, held: Joints) -> None:
        """Keep the difference between what was emitted last and the new chunk, and fade it out."""
        begin_ns = max(self.plan_ns, track.start_ns)
        there = track.at(begin_ns)
        after = track.at(begin_ns + self._tick_ns)
        here = held if self._pose is None else self._pose
        still = self._pose is None or self._before is None or self._moved_ns <= 0
        before = here if still or self._before is None else self._before
        moved_s = self._tick_s if still else self._moved_ns / NS_PER_S
        fastest = self._max_seam / self._tick_s
        self._offset = _joints([a - b for a, b in zip(here, there, strict=True)])
        slope = _joints(
            [
                min(max((a - b) / moved_s - (d - c) / self._tick_s, -fastest), fastest)
                for a, b, c, d in zip(here, before, there, after, strict=True)
            ]
        )
        fade_s = self._crossfade_s
        needed_s = PEAK * _largest(self._offset) / fastest if fade_s else 0.0
        self._fade = _Fade(begin_ns, self._offset, max(fade_s, needed_s), slope, fade_s)
        self.seam = 0.0

    def _faded(self, fade: _Fade, plan_ns: int, pose: Joints) -> Joints:
        limit = self._max_seam
        steps = [
            min(max(wanted - now, -limit), limit) for wanted, now in zip(fade.at(plan_ns), self._offset, strict=True)
        ]
        self._offset = _joints([now + step for now, step in zip(self._offset, steps, strict=True)])
        self.seam = max(self.seam, _largest(steps))
        self.seam_max = max(self.seam_max, self.seam)
        if plan_ns >= fade.end_ns and _largest(self._offset) < _ROUNDING:
            self._fade, self._offset = None, _NOTHING
            return pose
        return _joints([a + b for a, b in zip(pose, self._offset, strict=True)])

    # --- looking ahead ---

    @property
    def _newest(self) -> _Track | None:
        return self._waiting[-1] if self._waiting else self._track

    @property
    def depth(self) -> int:
        """Actions that lie ahead."""
        newest = self._newest
        return max(0, (newest.end_ns - self.plan_ns - 1) // newest.period_ns) if newest else 0

    @property
    def left_ns(self) -> int:
        """Plan time until the schedule ends."""
        return max(0, self._newest.end_ns - self.plan_ns) if self._newest else 0

    def ahead(self, start_ns: int, n: int) -> tuple[Joints, ...]:
        """At most `n` poses of the schedule, from `start_ns` on, one period of the newest chunk apart.

        They are what will be emitted if no other chunk comes: fewer than `n` where the schedule ends before.
        """
        newest = self._newest
        if newest is None:
            return ()
        times = range(start_ns, min(start_ns + n * newest.period_ns, newest.end_ns), newest.period_ns)
        return tuple(self._planned(plan_ns) for plan_ns in times)

    def _planned(self, plan_ns: int) -> Joints:
        for track in reversed(self._waiting):
            if plan_ns >= track.start_ns or self._track is None:
                return track.at(plan_ns)
        assert self._track is not None  # noqa: S101 - `ahead` has seen that there is one
        pose = self._track.at(plan_ns)
        return _joints([a + b for a, b in zip(pose, self._fade.at(plan_ns), strict=True)]) if self._fade else pose


def _well_formed(chunk: Chunk) -> bool:
    if not (0 < len(chunk.actions) <= MAX_ACTIONS and 0 < chunk.period_ns <= MAX_PERIOD_S * NS_PER_S):
        return False
    if chunk.start_ns < 0:
        return False
    width = len(JOINTS)
    for action in chunk.actions:
        if len(action) != width:
            return False
        for value in action:
            if not -MAX_VALUE <= value <= MAX_VALUE:  # also false for NaN
                return False
    return True


def _largest(values: Iterable[float]) -> float:
    return max(map(abs, values))


def _joints(values: list[float]) -> Joints:
    a, b, c, d, e, f = values
    return a, b, c, d, e, f


_NOTHING: Final[Joints] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

_ROUNDING: Final = 1e-9
