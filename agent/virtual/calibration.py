"""Calibrations as lerobot keeps them, and the arithmetic between counts and joint units that follows from them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from agent.messages import JOINTS, Joints
from agent.virtual.faults import ArmName
from agent.virtual.servo import COUNTS_PER_TURN, Servo

type Calibration = dict[str, dict[str, int]]
"""Joint -> id, drive_mode, homing_offset, range_min, range_max: the content of lerobot's calibration files."""

SCALE_COUNTS: Final = COUNTS_PER_TURN - 1
"""lerobot divides a turn by 4095, not 4096; so does everything here, to agree to the last digit."""

GRIPPER: Final = len(JOINTS) - 1

_TRAVEL_DEG: Final = (220.0, 200.0, 193.6, 190.0, 360.0, 110.0)
"""Travel between the end stops, in the order of JOINTS: the joint ranges of the arm's published models."""

_OFFSETS: Final[dict[tuple[str, ArmName], tuple[int, ...]]] = {
    ("so101", "follower"): (112, -840, 677, -1033, 305, 1290),
    ("so101", "leader"): (-61, 934, -1288, 410, -702, -233),
    ("so100", "follower"): (-377, 1105, -946, 58, 821, -1410),
    ("so100", "leader"): (640, -512, 1377, -193, -1120, 702),
}
"""Homing offsets of four arms as an assembler might happen to mount the horns."""

_LEAN: Final = (7, -12, 18, -5, 0, 0)
"""Counts by which the middle that a person showed misses the true middle: no hand is exact."""


def default_calibration(model: Literal["so100", "so101"], arm: ArmName = "follower") -> Calibration:
    """A plausible calibration, the same on every call."""
    calibration: Calibration = {}
    for index, (name, offset) in enumerate(zip(JOINTS, _OFFSETS[model, arm], strict=True)):
        half = round(_TRAVEL_DEG[index] / 2 * SCALE_COUNTS / 360)
        middle = COUNTS_PER_TURN // 2 - 1 + _LEAN[index]
        full_turn = name == "wrist_roll"  # lerobot's calibration gives it the whole turn
        calibration[name] = {
            "id": index + 1,
            "drive_mode": 0,
            "homing_offset": offset,
            "range_min": 0 if full_turn else middle - half,
            "range_max": SCALE_COUNTS if full_turn else middle + half,
        }
    return calibration


def load(path: Path) -> Calibration:
    calibration: Calibration = json.loads(path.read_text(encoding="utf-8"))
    return calibration


def save(path: Path, calibration: Calibration) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(calibration, indent=4), encoding="utf-8")
    fresh.replace(path)


def servos(calibration: Calibration) -> list[Servo]:
    """The six servos whose registers hold this calibration, each at its middle."""
    made = []
    for name in JOINTS:
        each = calibration[name]
        middle = (each["range_min"] + each["range_max"]) / 2 + each["homing_offset"]
        made.append(Servo(each["id"], each["homing_offset"], each["range_min"], each["range_max"], middle))
    return made


class JointScale:
    """Counts of the encoder frame <-> degrees about the calibrated middle (gripper: percent of its range)."""

    def __init__(self, calibration: Calibration) -> None:
        each = [calibration[name] for name in JOINTS]
        self._zero = [(one["range_min"] + one["range_max"]) / 2 + one["homing_offset"] for one in each]
        self._counts = [SCALE_COUNTS / 360] * len(JOINTS)
        grip = each[GRIPPER]
        self._zero[GRIPPER] = grip["range_min"] + grip["homing_offset"]
        self._counts[GRIPPER] = (grip["range_max"] - grip["range_min"]) / 100

    def to_joint(self, index: int, counts: float) -> float:
        return (counts - self._zero[index]) / self._counts[index]

    def to_counts(self, index: int, value: float) -> float:
        return self._zero[index] + value * self._counts[index]

    def per_unit(self, index: int) -> float:
        """Counts per degree, or per percent of the gripper."""
        return self._counts[index]

    def joints(self, of: Sequence[Servo]) -> Joints:
        values = [self.to_joint(index, servo.position) for index, servo in enumerate(of)]
        return values[0], values[1], values[2], values[3], values[4], values[5]
