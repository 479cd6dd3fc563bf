"""`so-agent secure`, on virtual servos: what is done about an arm whose agent is gone."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cli import execute
from agent.cli.locate import answers
from agent.config import StationConfig
from agent.errors import BadInput
from agent.messages import JOINTS, ArmHeartbeat, ArmQuery, ArmReply, ArmReport
from agent.robot.mailbox import Mailbox
from agent.robot.rescue import ease
from agent.transport import CommandClient
from agent.virtual.arm import VirtualArm, default_calibration
from agent.virtual.calibration import save
from agent.virtual.servo import Register
from tests.daemon.clocks import HandClock
from tests.station.live import ROOT
from tests.systemd.machine import wait_for

FAR = 300
"""Counts: 26 degrees."""

GRIPPER = len(JOINTS)

SILENCE_S = 0.3
"""Ten ticks of the control loop: an arm process that lives would have written a goal."""


@pytest.fixture
def config(make_config: Callable[..., StationConfig], short_dir: Path) -> StationConfig:
    made = make_config(cameras={})
    (short_dir / "station.yaml").write_text(made.model_dump_json())
    return made


@pytest.fixture
def arm(config: StationConfig) -> Iterator[VirtualArm]:
    """The follower, in the air and under torque."""
    calibration = default_calibration("so101")
    save(config.paths.follower_calibration, calibration)
    with VirtualArm(config.robot.follower.port, calibration) as follower:
        follower.set_joints_deg((0, -30, 30, 30, 0, 40))
        for servo_id in range(1, GRIPPER + 1):
            command(follower, servo_id)
        yield follower


@pytest.fixture
def guard(config: StationConfig, arm: VirtualArm) -> Iterator[subprocess.Popen[bytes]]:
    """An arm process that has the arm, as an agent leaves it behind."""
    file = config.state_dir.parent / "station.yaml"
    process = subprocess.Popen([sys.executable, "-m", "agent.cli", "secure", "--guard", "-c", file], cwd=ROOT)
    client: CommandClient[ArmReport] = CommandClient(config.paths.arm_ctl, ArmReply)
    try:
        wait_for("the arm process is there", lambda: answers(config.paths.arm_ctl), 60.0)
        wait_for("it has the arm", lambda: client.ask(ArmQuery(), 2.0).bus_connected, 10.0)
        yield process
    finally:
        process.kill()
        process.wait()


def command(arm: VirtualArm, servo_id: int, offset: int = 0) -> None:
    """Torque on, with a goal that far from where the servo is."""
    with arm.locked():
        servo = arm.servo(servo_id)
        servo.set(Register.GOAL_POSITION, servo.present_position() + offset)
        servo.write(Register.TORQUE_ENABLE, b"\x01")


def freeze(guard: subprocess.Popen[bytes], arm: VirtualArm) -> None:
    """The arm process hangs. Returns when its last words on the wire, a goal perhaps, have reached the servos too."""
    os.kill(guard.pid, signal.SIGSTOP)
    heard = -1
    while heard != arm.goals.count:
        heard = arm.goals.count
        time.sleep(SILENCE_S)


def push(arm: VirtualArm, servo_id: int) -> None:
    """Something is in the way of this joint, and it pushes against it."""
    arm.servo(servo_id).stalled = True
    command(arm, servo_id, FAR)


def off_by(arm: VirtualArm, servo_id: int) -> int:
    """How far the servo is from its goal, in counts."""
    servo = arm.servo(servo_id)
    return abs(servo.get(Register.GOAL_POSITION) - servo.present_position())


def secure(config: StationConfig, *options: str, status: int = 0) -> dict[str, Any]:
    file = config.state_dir.parent / "station.yaml"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert execute(["secure", "-c", str(file), "--json", *options]) == status, output.getvalue()
    answer: dict[str, Any] = json.loads(output.getvalue())
    return answer


def test_a_blocked_joint_stops_pushing_and_the_others_go_on_holding(config: StationConfig, arm: VirtualArm) -> None:
    push(arm, 2)
    push(arm, GRIPPER)
    before = [arm.servo(servo_id).get(Register.GOAL_POSITION) for servo_id in (1, 3, 4, 5)]
    found = ease(config.robot.follower.port, config.robot.bus_timeout_ms)
    assert found.eased == ("shoulder_lift",)
    assert off_by(arm, 2) <= 1
    assert off_by(arm, GRIPPER) > FAR / 2  # what it holds is not dropped
    assert [arm.servo(servo_id).get(Register.GOAL_POSITION) for servo_id in (1, 3, 4, 5)] == before
    assert all(servo.torque_enabled for servo in arm.servos)
    assert found.under_torque == JOINTS


def test_a_limp_arm_is_left_limp(config: StationConfig, arm: VirtualArm) -> None:
    for servo in arm.servos:
        servo.write(Register.TORQUE_ENABLE, b"\x00")
    assert secure(config)["arm"] == "limp"
    assert not any(servo.torque_enabled for servo in arm.servos)


def test_replies_that_get_lost_do_not_keep_it_from_easing(config: StationConfig, arm: VirtualArm) -> None:
    from agent.virtual.faults import ReplyFault

    push(arm, 3)
    arm.faults.add("drop", ReplyFault(count=2))
    assert ease(config.robot.follower.port, config.robot.bus_timeout_ms).eased == ("elbow_flex",)
    assert off_by(arm, 3) <= 1


def test_an_arm_that_is_not_there_is_said_and_no_failure(config: StationConfig) -> None:
    with pytest.raises(BadInput):
        ease(config.robot.follower.port, config.robot.bus_timeout_ms)
    answer = secure(config)
    assert answer["arm"] == "absent"
    assert "does not exist" in answer["reason"]


def test_nobody_but_systemd_can_have_the_control_group_cleared(config: StationConfig) -> None:
    """By hand it would end the session that it was typed in."""
    assert secure(config, "--service", status=2)["code"] == "bad-input"


def test_while_an_agent_runs_it_is_refused(config: StationConfig, arm: VirtualArm) -> None:
    config.paths.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(config.paths.agent_socket))
        agent.listen()
        assert secure(config, status=3)["code"] == "refused"


@pytest.mark.usefixtures("hardware")  # the servos answer although the arm process's imports keep this machine busy
def test_without_an_agent_to_follow_the_arm_is_parked_and_released(config: StationConfig, arm: VirtualArm) -> None:
    answer = secure(config, "--park")
    assert answer["arm"] == "left"
    assert not any(servo.torque_enabled for servo in arm.servos)
    parked = config.safety.park
    assert abs(arm.joints_deg()[1] - parked.shoulder_lift) < 5
    assert abs(arm.joints_deg()[2] - parked.elbow_flex) < 5


def test_an_arm_process_that_hangs_is_ended_and_its_arm_eased(
    config: StationConfig, arm: VirtualArm, guard: subprocess.Popen[bytes]
) -> None:
    freeze(guard, arm)
    push(arm, 2)
    answer = secure(config)
    assert guard.wait(5) == -signal.SIGKILL
    assert answer["arm"] == "held", answer
    assert answer["eased"] == ["shoulder_lift"]


def test_looking_at_an_arm_does_not_stand_in_for_its_agent() -> None:
    clock = HandClock()
    mailbox = Mailbox(clock)
    began_ns = mailbox.heard_ns
    clock.pass_s(5)
    mailbox.post(ArmQuery())
    assert mailbox.heard_ns == began_ns
    mailbox.post(ArmHeartbeat())
    assert mailbox.heard_ns == clock.now_ns()


def test_an_arm_process_that_lives_is_left_alone_unless_it_is_told_to_park(
    config: StationConfig, arm: VirtualArm, guard: subprocess.Popen[bytes]
) -> None:
    answer = secure(config)
    assert (answer["arm"], answer["pid"]) == ("minded", guard.pid)
    assert guard.poll() is None
    answer = secure(config, "--park")
    assert answer["arm"] == "left"
    assert guard.wait(5) == 0
    assert not any(servo.torque_enabled for servo in arm.servos)
