"""Calibrating one arm: what is written to servos and file, and in which order. No dialogue, no lerobot.

The same three steps as lerobot's own `calibrate()`, whose `input()` a daemon cannot answer: clear the old values,
make the middle pose the zero, note how far each joint goes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from agent.errors import BadInput, DeviceFault
from agent.messages import JOINTS
from agent.robot import calibration
from agent.robot.calibration import Calibration, CalibrationReport, JointCalibration, Match
from agent.robot.registers import RESOLUTION, SERVO_IDS, Live, Settings

HALF_TURN: Final = (RESOLUTION - 1) // 2
"""Where the middle pose shall read, as in lerobot: 2047."""

OFFSET_MAX: Final = RESOLUTION // 2 - 1
"""The servo keeps eleven bits and a sign."""

FULL_TURN: Final = "wrist_roll"
"""Has no end stops; lerobot gives it the whole turn."""

MIN_TRAVEL_COUNTS: Final = 400
"""35 degrees. A joint that moved less was forgotten; the smallest real range, a gripper's, is about 1200."""


class Servos(Protocol):
    """The part of `agent.robot.bus.ServoBus` that calibration needs."""

    def settings(self) -> dict[str, Settings]: ...
    def positions(self) -> dict[str, int]: ...
    def live(self) -> dict[str, Live]: ...
    def release(self) -> list[str]: ...
    def set_setting(self, register: str, name: str, value: int) -> None: ...


class Calibrator:
    """Works on the servos of one arm, whose calibration file is `path`."""

    def __init__(self, servos: Servos, path: Path) -> None:
        self._servos = servos
        self.path = path
        self._offsets: dict[str, int] = {}

    def check(self) -> CalibrationReport:
        """Do the file and the servos agree? Changes nothing."""
        return calibration.compare(calibration.load(self.path), self._servos.settings(), self.path)

    def under_torque(self) -> bool:
        return any(live.torque_on for live in self._servos.live().values())

    def release(self) -> None:
        """Torque off: neither a person nor a new zero may work against it."""
        if stuck := self._servos.release():
            raise DeviceFault(f"Torque stays on in {', '.join(stuck)}.", "Switch the arm's power supply off and on.")

    def adopt(self, source: Path, overwrite: bool) -> CalibrationReport:
        """Write the calibration in `source` to the servos and to this arm's file; what was found before.

        Raises BadInput when the servos hold a calibration that `source` does not resemble, unless `overwrite`.
        """
        wanted = calibration.load(source)
        if wanted is None:
            raise BadInput(
                f"There is no file {source}.", "Files of lerobot-calibrate end in robots/so_follower/ID.json."
            )
        before = calibration.compare(wanted, self._servos.settings(), source)
        if before.match is Match.OTHER_ARM and not overwrite:
            raise BadInput(
                before.problem,
                "Take this arm's own file. If the servos are what is wrong, add --overwrite to write the file to them.",
            )
        if before.match is not Match.SAME:
            self.release()
            self._write(wanted)
        calibration.save(self.path, wanted)
        return before

    def set_middle(self) -> None:
        """Make the present pose, the middle of every joint's travel, the zero. Forgets the old calibration."""
        for name in JOINTS:
            self._servos.set_setting("Operating_Mode", name, 0)
            self._servos.set_setting("Homing_Offset", name, 0)
            self._servos.set_setting("Min_Position_Limit", name, 0)
            self._servos.set_setting("Max_Position_Limit", name, RESOLUTION - 1)
        for name, position in self._servos.positions().items():
            self._offsets[name] = max(-OFFSET_MAX, min(OFFSET_MAX, position - HALF_TURN))
            self._servos.set_setting("Homing_Offset", name, self._offsets[name])

    def positions(self) -> dict[str, int]:
        return self._servos.positions()

    def finish(self, lowest: Mapping[str, int], highest: Mapping[str, int]) -> Calibration:
        """Write the ranges that a person showed, and the file. Raises BadInput for a joint that was not moved."""
        still = [name for name in JOINTS if name != FULL_TURN and highest[name] - lowest[name] < MIN_TRAVEL_COUNTS]
        if still:
            raise BadInput(
                f"Too little movement in {', '.join(still)}.", "Start again and move each joint from stop to stop."
            )
        found = {
            name: JointCalibration(
                SERVO_IDS[name],
                0,
                self._offsets[name],
                0 if name == FULL_TURN else max(0, lowest[name]),
                RESOLUTION - 1 if name == FULL_TURN else min(RESOLUTION - 1, highest[name]),
            )
            for name in JOINTS
        }
        self._write(found)
        calibration.save(self.path, found)
        return found

    def _write(self, wanted: Calibration) -> None:
        for name, joint in wanted.items():
            self._servos.set_setting("Homing_Offset", name, joint.homing_offset)
            self._servos.set_setting("Min_Position_Limit", name, joint.range_min)
            self._servos.set_setting("Max_Position_Limit", name, joint.range_max)
