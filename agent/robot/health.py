"""What the servos say about themselves, and what follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.clock import nanoseconds
from agent.config import Safety as SafetyConfig
from agent.messages import JOINTS, Joints, Limit, ServoHealth
from agent.robot.calibration import COUNTS_PER_DEGREE, GRIPPER, joints
from agent.robot.registers import SERVO_IDS, STATUS_HEAT, STATUS_OVERLOAD, STATUS_VOLTAGE, Live

ALARMS: Final = {1: "voltage", 2: "angle sensor", 4: "overheated", 8: "overcurrent", 32: "overload"}
"""Bits of register 65 and of the error byte in every reply."""

STILL_COUNTS: Final = round(1.0 * COUNTS_PER_DEGREE)
"""A joint that has not left this range is not moving."""

GRIP_RELIEF_PCT: Final = 5.0
"""How far an overloaded gripper's goal may be from where it is: enough to keep a grip."""


def alarm_words(bits: int) -> tuple[str, ...]:
    return tuple(word for bit, word in ALARMS.items() if bits & bit)


@dataclass
class _Servo:
    live: Live | None = None
    bits: int = 0
    pushing_since_ns: int | None = None
    pushing_at: int = 0
    stalled: bool = False


@dataclass(frozen=True)
class Verdict:
    """Joints in trouble, by kind, in the order of the arm."""

    hot: tuple[str, ...] = ()
    stalled: tuple[str, ...] = ()  # pushing hard without moving, or the servo's own overload alarm
    low_voltage: tuple[str, ...] = ()
    gripper_overload: bool = False  # a firm grip; relieved, not a reason to stop


@dataclass
class Health:
    """Collects polls and status bits; judges them against the limits of the configuration."""

    limits: SafetyConfig
    _servos: dict[str, _Servo] = field(default_factory=lambda: {name: _Servo() for name in JOINTS})

    def saw(self, name: str, live: Live, now_ns: int) -> None:
        """One poll of one servo."""
        servo = self._servos[name]
        servo.live = live
        servo.bits = live.status_bits
        pushes = live.torque_on and abs(live.load_pct) > self.limits.stall_load_pct
        if not pushes:
            servo.pushing_since_ns, servo.stalled = None, False
        elif servo.pushing_since_ns is None or abs(live.position - servo.pushing_at) > STILL_COUNTS:
            servo.pushing_since_ns, servo.pushing_at, servo.stalled = now_ns, live.position, False
        elif now_ns - servo.pushing_since_ns >= nanoseconds(self.limits.stall_after_s):
            servo.stalled = True

    def saw_bits(self, bits: Mapping[str, int]) -> None:
        """The status bits that came with a read of positions."""
        for name, value in bits.items():
            self._servos[name].bits = value

    def forget(self) -> None:
        """The bus was lost; what was read from it says nothing about the arm that comes back."""
        self._servos = {name: _Servo() for name in JOINTS}

    def verdict(self) -> Verdict:
        hot, stalled, low = [], [], []
        for name, servo in self._servos.items():
            live = servo.live
            if servo.bits & STATUS_HEAT or (live and live.temperature_c > self.limits.max_temperature_c):
                hot.append(name)
            if servo.stalled or (servo.bits & STATUS_OVERLOAD and name != GRIPPER):
                stalled.append(name)
            if servo.bits & STATUS_VOLTAGE or (live and live.voltage_v < self.limits.min_voltage_v):
                low.append(name)
        gripper = bool(self._servos[GRIPPER].bits & STATUS_OVERLOAD)
        return Verdict(tuple(hot), tuple(stalled), tuple(low), gripper)

    def relieve(self, action: Joints, measured: Joints | None) -> tuple[Joints, tuple[Limit, ...]]:
        """The action with an overloaded gripper's goal no further from where it is than a grip needs."""
        if measured is None or not self._servos[GRIPPER].bits & STATUS_OVERLOAD:
            return action, ()
        wanted, here = action[-1], measured[-1]
        eased = min(max(wanted, here - GRIP_RELIEF_PCT), here + GRIP_RELIEF_PCT)
        if eased == wanted:
            return action, ()
        return joints([*action[:-1], eased]), (Limit(GRIPPER, "load", wanted, eased),)

    def servos(self) -> tuple[ServoHealth, ...]:
        return tuple(self._health(name, servo) for name, servo in self._servos.items())

    def _health(self, name: str, servo: _Servo) -> ServoHealth:
        live = servo.live
        if live is None:
            return ServoHealth(name, SERVO_IDS[name], alarms=alarm_words(servo.bits))
        alarms = [*alarm_words(servo.bits)]
        if live.temperature_c > self.limits.max_temperature_c and "overheated" not in alarms:
            alarms.append("overheated")
        if live.voltage_v < self.limits.min_voltage_v and "voltage" not in alarms:
            alarms.append("voltage")
        if servo.stalled:
            alarms.append("stalled")
        return ServoHealth(
            name=name,
            id=SERVO_IDS[name],
            status_bits=servo.bits,
            temperature_c=live.temperature_c,
            voltage_v=live.voltage_v,
            load_pct=live.load_pct,
            torque_on=live.torque_on,
            alarms=tuple(alarms),
        )
