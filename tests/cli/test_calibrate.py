"""`calibrate` on lerobot's real driver and a virtual arm."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.cli.calibrator import HALF_TURN, Calibrator
from agent.config import StationConfig
from agent.errors import BadInput, Exit
from agent.messages import JOINTS
from agent.robot import calibration
from agent.robot.calibration import Match
from agent.virtual.arm import VirtualArm, default_calibration
from agent.virtual.calibration import save
from tests.cli.conftest import Cli

TRAVEL_COUNTS = 700


@pytest.fixture
def config(make_config: Callable[..., StationConfig]) -> StationConfig:
    return make_config(cameras={})


@pytest.fixture
def file(config: StationConfig, short_dir: Path) -> Path:
    path = short_dir / "station.yaml"
    path.write_text(config.model_dump_json())  # JSON is YAML
    return path


@pytest.fixture
def arm(config: StationConfig) -> Iterator[VirtualArm]:
    with VirtualArm(config.robot.follower.port, default_calibration("so101")) as arm:
        yield arm


@pytest.fixture
def calibrator(config: StationConfig, arm: VirtualArm) -> Iterator[Calibrator]:
    from agent.robot.bus import ServoBus

    bus = ServoBus(config, "follower")
    bus.open()
    yield Calibrator(bus, bus.calibration_path)
    bus.close()


def own_file(folder: Path, **changes: int) -> Path:
    """The calibration of the virtual follower, with changed homing offsets."""
    values = default_calibration("so101")
    for joint, offset in changes.items():
        values[joint]["homing_offset"] = offset
    save(folder / "own.json", values)
    return folder / "own.json"


def test_check_tells_whether_file_and_servos_agree(cli: Cli, file: Path, arm: VirtualArm, short_dir: Path) -> None:
    missing = cli("calibrate", "--check", "-c", file)
    assert missing.code == Exit.BAD_INPUT
    assert "no calibration file" in missing.err
    assert cli("calibrate", "--from", own_file(short_dir), "-c", file, "--json").json["before"] == Match.SAME
    agreed = cli("calibrate", "--check", "-c", file, "--json")
    assert (agreed.code, agreed.json["match"]) == (Exit.DONE, "same")


def test_the_calibration_of_another_arm_is_refused_and_nothing_is_written(
    cli: Cli, file: Path, arm: VirtualArm, config: StationConfig, short_dir: Path
) -> None:
    other = own_file(short_dir, shoulder_pan=1, shoulder_lift=2, elbow_flex=3)
    result = cli("calibrate", "--from", other, "-c", file)
    assert result.code == Exit.BAD_INPUT
    assert "another arm" in result.err
    assert "--overwrite" in result.err
    assert not config.paths.follower_calibration.exists()
    assert cli("calibrate", "--from", other, "--overwrite", "-c", file).code == Exit.DONE
    assert cli("calibrate", "--check", "-c", file).code == Exit.DONE


def test_an_arm_under_torque_is_not_dropped_without_a_yes(
    cli: Cli, file: Path, arm: VirtualArm, calibrator: Calibrator, short_dir: Path
) -> None:
    calibrator._servos.set_torque("elbow_flex", on=True)  # type: ignore[attr-defined]
    assert calibrator.under_torque()
    one_servo_replaced = own_file(short_dir, wrist_roll=77)
    calibrator._servos.close()  # type: ignore[attr-defined]
    result = cli("calibrate", "--from", one_servo_replaced, "-c", file)
    assert result.code == Exit.BAD_INPUT
    assert "--yes" in result.err
    assert arm.servos[2].torque_enabled
    assert cli("calibrate", "--from", one_servo_replaced, "-c", file, "--yes").code == Exit.DONE
    assert not arm.servos[2].torque_enabled


def test_a_calibration_that_a_person_shows_is_written_read_back_and_kept(
    calibrator: Calibrator, arm: VirtualArm
) -> None:
    calibrator.release()
    calibrator.set_middle()
    middle = calibrator.positions()
    assert all(abs(position - HALF_TURN) <= 1 for position in middle.values())
    lowest = {name: middle[name] - TRAVEL_COUNTS for name in JOINTS}
    highest = {name: middle[name] + TRAVEL_COUNTS for name in JOINTS}
    found = calibrator.finish(lowest, highest)
    assert calibrator.check().match is Match.SAME
    assert calibration.load(calibrator.path) == found
    assert (found["wrist_roll"].range_min, found["wrist_roll"].range_max) == (0, 4095)
    assert found["gripper"].range_max - found["gripper"].range_min == 2 * TRAVEL_COUNTS


def test_a_joint_that_was_forgotten_is_named(calibrator: Calibrator) -> None:
    calibrator.set_middle()
    here = calibrator.positions()
    with pytest.raises(BadInput, match="Too little movement in shoulder_pan, shoulder_lift"):
        calibrator.finish(here, here)


def test_a_person_is_led_through_it_on_a_terminal(file: Path, arm: VirtualArm, config: StationConfig) -> None:
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "agent.cli", "calibrate", "-c", file], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = ""

    def read_until(pattern: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while not re.search(pattern, seen):
            assert time.monotonic() < deadline, seen
            if select.select([mine], [], [], 1)[0]:
                seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen + os.read(mine, 4096).decode(errors="replace"))

    try:
        read_until("press Enter")
        os.write(mine, b"\n")
        read_until("move me")
        with arm.locked() as servos:
            for servo in servos:
                servo.position -= TRAVEL_COUNTS
        read_until(r"gripper[^\n]*✓")
        os.write(mine, b"\n")
        read_until("read back")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(mine)
    assert set(json.loads(config.paths.follower_calibration.read_text())) == set(JOINTS)


def test_calibrating_is_refused_while_the_agent_runs(cli: Cli, file: Path, config: StationConfig) -> None:
    from tests.cli.wire import Agent

    with Agent(config.paths.agent_socket, {}):
        result = cli("calibrate", "--check", "-c", file)
    assert result.code == Exit.REFUSED
    assert "while the agent runs" in result.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "needs a terminal"),
        (["--check", "--from", "x.json"], "exclude each other"),
        (["--check", "--arm", "elbow"], "elbow"),
    ],
)
def test_what_cannot_be_meant_is_refused(cli: Cli, file: Path, words: list[str], sentence: str) -> None:
    result = cli("calibrate", "-c", file, *words)
    assert result.code == Exit.BAD_INPUT
    assert sentence in result.err


def test_a_port_that_does_not_exist_and_a_file_that_is_none_are_refused(
    cli: Cli, file: Path, short_dir: Path, config: StationConfig
) -> None:
    absent = cli("calibrate", "--check", "-c", file)
    assert absent.code == Exit.BAD_INPUT
    assert "does not exist" in absent.err
    with VirtualArm(config.robot.follower.port, default_calibration("so101")):
        assert "There is no file" in cli("calibrate", "--from", short_dir / "none.json", "-c", file).err
        (short_dir / "bad.json").write_text("{")
        assert cli("calibrate", "--from", short_dir / "bad.json", "-c", file).code == Exit.BAD_INPUT
