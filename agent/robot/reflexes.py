"""What trouble with the servos makes the arm do, whatever it was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.clock import nanoseconds
from agent.messages import Drive
from agent.robot.health import Verdict

STALL_RELEASE_S: Final = 2.0
"""A stall that lasts this long although the goal is at the present pose is a jam: torque off."""

MOVING: Final = frozenset({Drive.ALIGN, Drive.FOLLOW, Drive.EXECUTE, Drive.PARK})


@dataclass(frozen=True)
class Reflex:
    """Another drive: HOLD, PARK, or LIMP."""

    drive: Drive
    reason: str
    here: bool = False  # hold at the measured pose, not at the last command


class Reflexes:
    """Remembers what was in trouble already: most troubles act once, when they begin."""

    def __init__(self) -> None:
        self._low_voltage = False
        self._lost: list[str] = []
        self._stalled_ns: int | None = None

    def adopt(self, lost: Sequence[str]) -> None:
        """An arm was taken as it is, with these servos that lost their torque."""
        self._lost = list(lost)

    def forget_stall(self) -> None:
        """The bus was lost, and with it whatever was known of the loads."""
        self._stalled_ns = None

    def judge(
        self, verdict: Verdict, lost: Sequence[str], drive: Drive, now_ns: int, *, commanded: bool, measured: bool
    ) -> Reflex | None:
        """What must be done at once, if anything. `lost`: servos that rebooted. `commanded`, `measured`: whether there
        is a last command, and a reading of this tick."""
        low, stalled = bool(verdict.low_voltage), bool(verdict.stalled)
        newly_low, self._low_voltage = low and not self._low_voltage, low
        newly_lost, self._lost = list(lost) != self._lost and bool(lost), list(lost)
        newly_stalled = stalled and self._stalled_ns is None
        if not stalled:
            self._stalled_ns = None
        elif newly_stalled:
            self._stalled_ns = now_ns
        hot = f"{', '.join(verdict.hot)} too hot"
        if self._stalled_ns and now_ns - self._stalled_ns > nanoseconds(STALL_RELEASE_S):
            jammed = ", ".join(verdict.stalled)
            return Reflex(Drive.LIMP, f"{jammed} jammed or overloaded; released to save the motor")
        if verdict.hot and (lost or not commanded):
            return Reflex(Drive.LIMP, f"{hot}; released")
        if newly_lost or (lost and drive in MOVING):
            rebooted = ", ".join(lost)
            return Reflex(Drive.HOLD, f"{rebooted} lost torque; the servo rebooted. Hold or start again to engage it")
        if newly_stalled:
            pushing = ", ".join(verdict.stalled)
            return Reflex(Drive.HOLD, f"{pushing} stalled or overloaded; holding where it is", here=True)
        if verdict.hot and drive is not Drive.PARK and not stalled and measured:
            return Reflex(Drive.PARK, f"{hot}; parking to let it cool down")
        if low and drive in MOVING and (newly_low or drive is not Drive.PARK):
            weak = ", ".join(verdict.low_voltage)
            return Reflex(Drive.HOLD, f"low voltage at {weak}; check the power supply")
        return None
