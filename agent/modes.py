"""The mode machine: one table that can be read aloud, one owner (the station), every transition logged.

Recording is not a mode but a flag that rides on TELEOP and EXECUTING. Priority when several want the
arm: e-stop > operator > task > training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from agent.clock import Clock
from agent.errors import Refused


class Mode(StrEnum):
    STARTING = "starting"  # children come up, calibration is compared
    IDLE = "idle"  # arm limp, nothing wanted of it
    ALIGNING = "aligning"  # follower moves slowly onto the leader before teleop
    TELEOP = "teleop"  # follower follows the leader
    EXECUTING = "executing"  # actions come from a policy
    TRAINING = "training"  # arm limp, the host learns
    HOLD = "hold"  # torque on, last command kept
    HOMING = "homing"  # moving slowly to the park pose, then IDLE
    ESTOP = "estop"  # latched; leaves only by a local reset
    FAULT = "fault"  # the arm cannot be used; the reason says why
    STOPPING = "stopping"  # parking and committing before exit


_M = Mode

TABLE: dict[Mode, frozenset[Mode]] = {
    _M.STARTING: frozenset({_M.IDLE, _M.HOLD, _M.ESTOP, _M.FAULT, _M.STOPPING}),
    _M.IDLE: frozenset({_M.ALIGNING, _M.EXECUTING, _M.TRAINING, _M.HOLD, _M.HOMING, _M.ESTOP, _M.FAULT, _M.STOPPING}),
    _M.ALIGNING: frozenset({_M.TELEOP, _M.EXECUTING, _M.HOLD, _M.ESTOP, _M.FAULT, _M.STOPPING}),
    _M.TELEOP: frozenset({_M.HOLD, _M.EXECUTING, _M.ESTOP, _M.FAULT, _M.STOPPING}),
    _M.EXECUTING: frozenset({_M.ALIGNING, _M.HOLD, _M.ESTOP, _M.FAULT, _M.STOPPING}),
    _M.TRAINING: frozenset({_M.IDLE, _M.ALIGNING, _M.EXECUTING, _M.HOLD, _M.HOMING, _M.ESTOP, _M.FAULT, _M.STOPPING}),
    _M.HOLD: frozenset({_M.IDLE, _M.ALIGNING, _M.EXECUTING, _M.HOMING, _M.ESTOP, _M.FAULT, _M.STOPPING}),
    _M.HOMING: frozenset({_M.IDLE, _M.HOLD, _M.ESTOP, _M.FAULT, _M.STOPPING}),
    _M.ESTOP: frozenset({_M.IDLE, _M.HOLD, _M.STOPPING}),
    _M.FAULT: frozenset({_M.IDLE, _M.HOLD, _M.ESTOP, _M.STOPPING}),
    _M.STOPPING: frozenset({_M.ESTOP}),
}
"""from: {to, ...}. What is not here is refused."""

RECORDABLE = frozenset({Mode.TELEOP, Mode.EXECUTING})

GUARDED = frozenset({Mode.ALIGNING, Mode.TELEOP, Mode.EXECUTING})
"""Motion that ends when the lease does that it was begun with. An arm that is parking goes on: it comes to rest."""

MOVING = GUARDED | {Mode.HOMING}

PASSING = (Mode.HOLD, Mode.ALIGNING)
"""Modes that may have been passed through before anyone could look: the arm is held, or was aligned already."""

WHAT_TO_DO: dict[Mode, str] = {
    _M.STARTING: "Wait until `so-agent status` shows idle.",
    _M.IDLE: "Start with `so-agent teleop start` or `so-agent task start`.",
    _M.ALIGNING: "Wait until the follower has reached the leader, or run `so-agent hold`.",
    _M.TELEOP: "Run `so-agent teleop stop` first.",
    _M.EXECUTING: "Run `so-agent task stop` first, or `so-agent hold`.",
    _M.TRAINING: "Training stops by itself when the arm is needed; try again.",
    _M.HOLD: "Run `so-agent park`, or start teleop again.",
    _M.HOMING: "Wait until the arm is parked, or run `so-agent hold`.",
    _M.ESTOP: "Make sure that the arm is safe, then run `so-agent reset` on this machine.",
    _M.FAULT: "See `so-agent status` for the reason; clear it, then run `so-agent reset`.",
    _M.STOPPING: "The agent is shutting down; start it again.",
}


def steps(before: Mode, after: Mode) -> tuple[Mode, ...]:
    """The edges to walk from one mode to another, at most through `PASSING`; empty where there is no way."""
    ways: list[tuple[Mode, ...]] = [(mode,) for mode in TABLE[before]]
    while ways:
        way = ways.pop(0)
        if way[-1] is after:
            return way
        if way[-1] in PASSING and len(way) <= len(PASSING):
            ways += [(*way, mode) for mode in TABLE[way[-1]] if mode not in way]
    return ()


@dataclass(frozen=True)
class Transition:
    """What is logged for every change of mode."""

    before: Mode
    after: Mode
    cause: str
    at_ns: int


class ModeMachine:
    """Holds the one current mode. Only the station calls `to`."""

    def __init__(self, clock: Clock, on_transition: Callable[[Transition], None]) -> None:
        self._clock = clock
        self._on_transition = on_transition
        self.mode = Mode.STARTING
        self.reason = "starting"

    def allows(self, mode: Mode) -> bool:
        return mode in TABLE[self.mode]

    def require(self, mode: Mode) -> None:
        """Raises Refused, naming the present mode and the way out of it, unless `mode` can be entered."""
        if not self.allows(mode):
            raise Refused(f"Not possible in mode {self.mode}: {self.reason}.", WHAT_TO_DO[self.mode])

    def to(self, mode: Mode, cause: str) -> None:
        """Enter `mode`. Entering the present mode again only renews the reason."""
        if mode is self.mode:
            self.reason = cause
            return
        self.require(mode)
        before, self.mode, self.reason = self.mode, mode, cause
        self._on_transition(Transition(before, mode, cause, self._clock.now_ns()))
