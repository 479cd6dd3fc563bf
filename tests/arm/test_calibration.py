"""Calibration files: read, written, compared, and their arithmetic against lerobot's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import BadInput
from agent.messages import JOINTS
from agent.robot import calibration
from agent.robot.calibration import Calibration, JointCalibration, Match, Scale
from agent.robot.registers import Settings
from agent.virtual.arm import default_calibration
from agent.virtual.calibration import servos as virtual_servos

VALUES = default_calibration("so101")
CALIBRATION: Calibration = {name: JointCalibration(**VALUES[name]) for name in JOINTS}


def registers() -> dict[str, Settings]:
    return {name: Settings.parse(servo.read(0, 40)) for name, servo in zip(JOINTS, virtual_servos(VALUES), strict=True)}


def test_what_is_saved_is_what_lerobot_reads(tmp_path: Path) -> None:
    from lerobot.robots.so_follower import SOFollower, SOFollowerRobotConfig

    calibration.save(tmp_path / "arm.json", CALIBRATION)
    robot = SOFollower(SOFollowerRobotConfig(id="arm", port="/dev/null", calibration_dir=tmp_path))
    assert {name: vars(joint) for name, joint in robot.calibration.items()} == VALUES
    assert calibration.load(tmp_path / "arm.json") == CALIBRATION


def test_degrees_and_percent_are_those_of_lerobot(tmp_path: Path) -> None:
    from lerobot.robots.so_follower import SOFollower, SOFollowerRobotConfig

    calibration.save(tmp_path / "arm.json", CALIBRATION)
    robot = SOFollower(SOFollowerRobotConfig(id="arm", port="/dev/null", calibration_dir=tmp_path))
    scale = Scale(CALIBRATION)
    for share in (0.0, 0.1, 0.5, 0.77, 1.0):
        counts = {
            name: round(joint.range_min + share * (joint.range_max - joint.range_min))
            for name, joint in CALIBRATION.items()
        }
        ours = scale.to_units(counts)
        theirs = robot.bus._normalize({CALIBRATION[name].id: value for name, value in counts.items()})
        assert ours == pytest.approx(list(theirs.values()), abs=1e-9)
        assert scale.to_counts(ours) == counts, "what was read is what is held"
        written = robot.bus._unnormalize(theirs)
        assert all(abs(written[CALIBRATION[name].id] - counts[name]) <= 1 for name in JOINTS)


def test_an_inverted_gripper_is_inverted_as_in_lerobot() -> None:
    scale = Scale(CALIBRATION | {"gripper": replace(CALIBRATION["gripper"], drive_mode=1)})
    closed = {name: joint.range_max for name, joint in CALIBRATION.items()}
    assert scale.to_units(closed)[-1] == 0
    assert scale.to_counts(scale.to_units(closed)) == closed


def test_the_file_of_this_arm_matches(tmp_path: Path) -> None:
    assert calibration.compare(CALIBRATION, registers(), tmp_path).match is Match.SAME


def test_the_file_of_another_arm_is_told_from_a_replaced_servo(tmp_path: Path) -> None:
    other = {name: replace(joint, homing_offset=joint.homing_offset + 50) for name, joint in CALIBRATION.items()}
    report = calibration.compare(other, registers(), tmp_path)
    assert report.match is Match.OTHER_ARM
    assert "another arm: 6 joints differ" in report.problem
    assert len(report.differences) == 6
    one = CALIBRATION | {"gripper": other["gripper"]}
    report = calibration.compare(one, registers(), tmp_path)
    assert report.match is Match.ONE_SERVO
    assert "gripper" in report.problem


def test_a_missing_file_and_untouched_servos_are_named(tmp_path: Path) -> None:
    factory = {
        name: replace(servo, homing_offset=0, range_min=0, range_max=4095) for name, servo in registers().items()
    }
    assert calibration.compare(CALIBRATION, factory, tmp_path).match is Match.NEVER_WRITTEN
    assert "the servos hold one" in calibration.compare(None, registers(), tmp_path).problem
    assert "the servos hold none either" in calibration.compare(None, factory, tmp_path).problem
    assert calibration.load(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": 9}, "gripper.id: expected 6, found 9"),
        ({"range_min": 3000, "range_max": 2000}, "found 3000..2000"),
        ({"range_max": 5000}, "within 0..4095"),
        ({"homing_offset": 4000}, "does not fit"),
        ({"homing_offset": 1.5}, "whole number, found 1.5"),
        ({"homing_offset": True}, "whole number, found True"),
        ({"extra": 1}, "expected the fields"),
    ],
)
def test_a_bad_file_is_refused_with_file_field_and_value(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = tmp_path / "arm.json"
    path.write_text(json.dumps(VALUES | {"gripper": VALUES["gripper"] | change}))
    with pytest.raises(BadInput, match=says) as caught:
        calibration.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"gripper": {}}'])
def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "arm.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=str(path)):
        calibration.load(path)
