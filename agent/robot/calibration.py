"""Calibration files as lerobot keeps them, the arithmetic that follows from them, and their comparison with an arm.

A calibration says for each joint where its middle is (`homing_offset`, kept in the servo) and how far it goes
(`range_min`, `range_max`, kept in the servo too). Moving with the calibration of another arm drives joints into
their stops, so the file and the servos must agree before torque is allowed. Nothing here writes to servos.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from agent.errors import BadInput
from agent.messages import JOINTS, Joints
from agent.robot.registers import RESOLUTION, SERVO_IDS, Settings

GRIPPER: Final = JOINTS[-1]

COUNTS_PER_DEGREE: Final = (RESOLUTION - 1) / 360
"""lerobot's own factor (`MotorsBus._normalize`): 4095 and not 4096 counts to the turn."""

SAME_ARM_MOVED_JOINTS: Final = 1
"""One differing joint is a replaced servo; offsets that differ on more joints are another arm's."""

_HINT: Final = "Run `so-agent calibrate`, or `so-agent calibrate --from FILE` with this arm's file."


@dataclass(frozen=True)
class JointCalibration:
    """One joint in lerobot's format. Offset and range in encoder counts."""

    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int


type Calibration = dict[str, JointCalibration]


class Match(StrEnum):
    """How a calibration file and the servos' registers compare."""

    SAME = "same"
    NO_FILE = "no file"
    NEVER_WRITTEN = "never written"  # the servos are as they left the factory
    ONE_SERVO = "one servo differs"
    OTHER_ARM = "another arm"


@dataclass(frozen=True)
class CalibrationReport:
    """The result of a comparison. `problem` is one sentence, empty when everything agrees."""

    match: Match
    problem: str = ""
    hint: str = ""
    differences: tuple[str, ...] = ()  # one line per joint


def load(path: Path) -> Calibration | None:
    """The calibration in `path`, None when there is no file. Raises BadInput naming file, field and value."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is no calibration file: {error}.", _HINT) from error
    if not isinstance(values, dict) or set(values) != set(JOINTS):
        found = ", ".join(sorted(values)) if isinstance(values, dict) else type(values).__name__
        raise BadInput(f"{path}: expected the joints {', '.join(JOINTS)}; found {found}.", _HINT)
    return {name: _joint(path, name, values[name]) for name in JOINTS}


def _joint(path: Path, name: str, values: Any) -> JointCalibration:
    fields = ("id", "drive_mode", "homing_offset", "range_min", "range_max")
    if not isinstance(values, dict) or set(values) != set(fields):
        raise BadInput(f"{path}: {name}: expected the fields {', '.join(fields)}; found {values!r:.80}.", _HINT)
    for field in fields:
        if type(values[field]) is not int:
            raise BadInput(f"{path}: {name}.{field}: expected a whole number, found {values[field]!r:.40}.", _HINT)
    joint = JointCalibration(**values)
    if joint.id != SERVO_IDS[name]:
        raise BadInput(f"{path}: {name}.id: expected {SERVO_IDS[name]}, found {joint.id}.", _HINT)
    if not 0 <= joint.range_min < joint.range_max < RESOLUTION:
        found = f"{joint.range_min}..{joint.range_max}"
        raise BadInput(f"{path}: {name}: the range must lie within 0..{RESOLUTION - 1}, found {found}.", _HINT)
    if abs(joint.homing_offset) >= RESOLUTION // 2:  # eleven bits and a sign
        raise BadInput(f"{path}: {name}.homing_offset: {joint.homing_offset} does not fit into the servo.", _HINT)
    return joint


def save(path: Path, calibration: Calibration) -> None:
    """Write in lerobot's format, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump({name: asdict(joint) for name, joint in calibration.items()}, file, indent=4)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def compare(calibration: Calibration | None, servos: Mapping[str, Settings], path: Path) -> CalibrationReport:
    """Does the file belong to this arm?"""
    factory = [name for name in JOINTS if _is_factory(servos[name])]
    if calibration is None:
        state = "the servos hold none either" if len(factory) == len(JOINTS) else "the servos hold one"
        return CalibrationReport(
            Match.NO_FILE, f"There is no calibration file {path}; {state}.", "Run `so-agent calibrate`."
        )
    if len(factory) == len(JOINTS):
        return CalibrationReport(Match.NEVER_WRITTEN, "The servos have never been calibrated.", _HINT)
    differing = [name for name in JOINTS if _differs(calibration[name], servos[name])]
    if not differing:
        return CalibrationReport(Match.SAME)
    lines = tuple(f"{name}: file {_text(calibration[name])}, servo {_text(servos[name])}" for name in differing)
    if len(differing) <= SAME_ARM_MOVED_JOINTS:
        problem = f"The servo of {differing[0]} does not hold the calibration in {path}; was it replaced?"
        return CalibrationReport(Match.ONE_SERVO, problem, _HINT, lines)
    problem = f"{path} is the calibration of another arm: {len(differing)} joints differ ({', '.join(differing)})."
    return CalibrationReport(Match.OTHER_ARM, problem, _HINT, lines)


def _differs(joint: JointCalibration, servo: Settings) -> bool:
    return (joint.homing_offset, joint.range_min, joint.range_max) != (
        servo.homing_offset,
        servo.range_min,
        servo.range_max,
    )


def _is_factory(servo: Settings) -> bool:
    return (servo.homing_offset, servo.range_min, servo.range_max) == (0, 0, RESOLUTION - 1)


def _text(values: JointCalibration | Settings) -> str:
    return f"offset {values.homing_offset} range {values.range_min}..{values.range_max}"


class Scale:
    """Counts <-> degrees about the middle (gripper: percent of its range), with lerobot's formulas.

    Unlike lerobot, goals are rounded and not cut off, so that holding a pose that was read does not creep.
    """

    def __init__(self, calibration: Calibration) -> None:
        self._zero: list[float] = []
        self._per_unit: list[float] = []
        reach = []
        for name in JOINTS:
            joint = calibration[name]
            if name == GRIPPER:
                span = (joint.range_max - joint.range_min) / 100
                # Only lerobot's percent modes know an inverted direction.
                self._zero.append(joint.range_max if joint.drive_mode else joint.range_min)
                self._per_unit.append(-span if joint.drive_mode else span)
                reach.append(100.0)
            else:
                self._zero.append((joint.range_min + joint.range_max) / 2)
                self._per_unit.append(COUNTS_PER_DEGREE)
                reach.append((joint.range_max - joint.range_min) / 2 / COUNTS_PER_DEGREE)
        self.high: Joints = joints(reach)
        self.low: Joints = joints([0.0 if name == GRIPPER else -reach[i] for i, name in enumerate(JOINTS)])

    def to_units(self, counts: Mapping[str, int]) -> Joints:
        return joints([(counts[name] - self._zero[i]) / self._per_unit[i] for i, name in enumerate(JOINTS)])

    def to_counts(self, values: Sequence[float]) -> dict[str, int]:
        return {name: round(self._zero[i] + values[i] * self._per_unit[i]) for i, name in enumerate(JOINTS)}


def joints(values: Sequence[float]) -> Joints:
    """Six values as the tuple type that messages use."""
    a, b, c, d, e, f = values
    return (a, b, c, d, e, f)
