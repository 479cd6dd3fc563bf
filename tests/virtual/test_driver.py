"""lerobot's real drivers on the virtual arm: what works on hardware works here, and fails the same way."""

import builtins
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.messages import JOINTS
from agent.virtual.arm import VirtualArm, default_calibration
from agent.virtual.calibration import save
from agent.virtual.faults import ReplyFault
from agent.virtual.servo import Register, Status
from tests.virtual.waiting import until


@pytest.fixture
def arm(short_dir: Path) -> Iterator[VirtualArm]:
    calibration = default_calibration("so101")
    save(short_dir / "virt.json", calibration)
    with VirtualArm(short_dir / "dev" / "follower", calibration) as arm:
        yield arm


def make_follower(arm: VirtualArm, short_dir: Path) -> Any:
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    return SO101Follower(SO101FollowerConfig(port=str(arm.link), id="virt", calibration_dir=short_dir))


@pytest.fixture
def follower(arm: VirtualArm, short_dir: Path) -> Iterator[Any]:
    robot = make_follower(arm, short_dir)
    robot.connect(calibrate=False)
    yield robot
    if robot.bus.port_handler.is_open:
        robot.bus.port_handler.closePort()


def test_the_real_follower_connects_calibrated_without_asking(
    arm: VirtualArm, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_input(*_: object) -> str:
        raise AssertionError("input() was called")

    monkeypatch.setattr(builtins, "input", no_input)
    robot = make_follower(arm, short_dir)
    robot.connect()
    assert robot.is_calibrated
    robot.disconnect()
    assert not any(servo.torque_enabled for servo in arm.servos)


def test_the_real_leader_reads_where_the_joints_are(arm: VirtualArm, short_dir: Path) -> None:
    from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig

    arm.set_joints_deg((10, -20, 30, -40, 50, 60))
    leader = SO101Leader(SO101LeaderConfig(port=str(arm.link), id="virt", calibration_dir=short_dir))
    leader.connect(calibrate=False)
    action = leader.get_action()
    leader.disconnect()
    assert [action[f"{name}.pos"] for name in JOINTS] == pytest.approx((10, -20, 30, -40, 50, 60), abs=0.1)


def test_an_action_moves_the_arm_and_the_wire_log_holds_exactly_what_was_sent(arm: VirtualArm, follower: Any) -> None:
    before = arm.goals.count
    goal = dict(zip(JOINTS, (10.0, -20.0, 30.0, -10.0, 20.0, 40.0), strict=True))
    sent = follower.send_action({f"{name}.pos": value for name, value in goal.items()})
    until(lambda: max(abs(a - b) for a, b in zip(arm.joints_deg(), goal.values(), strict=True)) < 0.2, "arrived")
    seen = follower.get_observation()
    assert [seen[f"{name}.pos"] for name in JOINTS] == pytest.approx(list(goal.values()), abs=0.2)
    (_, goals), *rest = arm.goals.since(before)
    assert not rest
    wanted = follower.bus._unnormalize({index + 1: sent[f"{name}.pos"] for index, name in enumerate(JOINTS)})
    assert goals == wanted
    assert json.loads(json.dumps(goals))


def test_speed_is_that_of_a_real_servo(arm: VirtualArm, follower: Any) -> None:
    follower.send_action({"shoulder_pan.pos": 100.0})
    start, at = time.monotonic(), arm.joints_deg()[0]
    until(lambda: arm.joints_deg()[0] > at + 60, "60 degrees")
    assert 0.15 < time.monotonic() - start < 1.0


def test_goals_written_without_torque_wait_and_torque_makes_the_arm_jump_to_them(
    arm: VirtualArm, follower: Any
) -> None:
    follower.bus.disable_torque()
    follower.send_action({"elbow_flex.pos": 40.0})
    assert arm.servo(3).target() is None
    follower.bus.enable_torque()
    until(lambda: arm.joints_deg()[2] > 39, "elbow at its old goal")


def test_a_reply_that_is_dropped_corrupted_truncated_or_late_is_retried(arm: VirtualArm, follower: Any) -> None:
    for kind in ("drop", "corrupt", "truncate", "delay", "garbage"):
        arm.faults.add(kind, ReplyFault(servo="elbow_flex", count=1, delay_ms=100))
        follower.get_observation()
        follower.bus.port_handler.ser.reset_input_buffer()
    assert arm.faults.hits == 5


def test_replies_that_stay_lost_are_a_connection_error(arm: VirtualArm, follower: Any) -> None:
    arm.faults.add("drop", ReplyFault(servo=3))
    with pytest.raises(ConnectionError):
        follower.get_observation()
    arm.faults.clear()
    follower.bus.port_handler.ser.reset_input_buffer()
    assert follower.get_observation()


def test_a_missing_servo_leaves_the_others_readable(arm: VirtualArm, follower: Any) -> None:
    arm.servo(5).present = False
    with pytest.raises(ConnectionError):
        follower.get_observation()
    follower.bus.port_handler.ser.reset_input_buffer()
    assert follower.bus.read("Present_Temperature", "gripper") > 0


def test_an_unplugged_port_fails_and_a_replugged_one_serves_a_new_driver(
    arm: VirtualArm, follower: Any, short_dir: Path
) -> None:
    import termios

    arm.port.unplug()
    assert not arm.link.exists()
    with pytest.raises((termios.error, OSError)):
        follower.get_observation()
    arm.port.replug()
    again = make_follower(arm, short_dir)
    again.connect(calibrate=False)
    assert again.get_observation()
    again.disconnect()


def test_lost_power_silences_the_bus_and_returns_with_torque_off(arm: VirtualArm, follower: Any) -> None:
    arm.set_power(False)
    with pytest.raises(ConnectionError):
        follower.get_observation()
    arm.set_power(True)
    follower.bus.port_handler.ser.reset_input_buffer()
    assert follower.get_observation()
    assert not any(follower.bus.sync_read("Torque_Enable", normalize=False).values())


def test_a_rebooted_servo_forgets_its_goal_and_torque_but_keeps_its_calibration(arm: VirtualArm, follower: Any) -> None:
    follower.send_action({"elbow_flex.pos": 40.0})
    with arm.locked() as servos:
        servos[2].power_cycle()
    assert follower.bus.read("Torque_Enable", "elbow_flex", normalize=False) == 0
    assert follower.is_calibrated


@pytest.mark.parametrize(
    ("bit", "cause"),
    [
        (Status.HEAT, lambda servo: setattr(servo, "hot_c", 80.0)),
        (Status.OVERLOAD, lambda servo: servo.latch(Status.OVERLOAD)),
        (Status.VOLTAGE, lambda servo: setattr(servo, "supply_v", 3.5)),
    ],
)
def test_an_alarm_shows_in_the_status_register_and_in_every_reply(
    arm: VirtualArm, follower: Any, bit: Status, cause: Callable[[Any], None]
) -> None:
    cause(arm.servo(6))
    assert follower.bus.sync_read("Status", normalize=False)["gripper"] == bit
    assert follower.get_observation()  # sync_read ignores the error byte
    with pytest.raises(RuntimeError, match="error"):
        follower.bus.read("Present_Position", "gripper")


def test_a_stalled_joint_pushes_until_its_overload_protection_trips(arm: VirtualArm, follower: Any) -> None:
    arm.servo(1).stalled = True
    follower.send_action({"shoulder_pan.pos": 30.0})
    until(lambda: abs(follower.bus.sync_read("Present_Load", normalize=False)["shoulder_pan"]) > 900, "full load")
    until(lambda: bool(arm.servo(1).status() & Status.OVERLOAD), "overload after 2 s")
    assert arm.servo(1).torque_limit == pytest.approx(0.2)
    assert arm.joints_deg()[0] == pytest.approx(0, abs=0.1)


def test_a_client_may_die_and_a_new_one_open_the_port(arm: VirtualArm, follower: Any, short_dir: Path) -> None:
    follower.bus.port_handler.ser.close()
    again = make_follower(arm, short_dir)
    again.connect(calibrate=False)
    assert again.get_observation()
    again.disconnect()


def test_calibration_that_is_unlocked_survives_a_reboot_and_locked_writes_do_not(arm: VirtualArm) -> None:
    with arm.locked() as servos:
        servo = servos[0]
        servo.write(Register.LOCK, b"\x00")
        servo.write(Register.MAX_TEMPERATURE, b"\x40")
        servo.write(Register.LOCK, b"\x01")
        servo.write(Register.P, b"\x05")
        servo.power_cycle()
        assert (servo.byte(Register.MAX_TEMPERATURE), servo.byte(Register.P)) == (0x40, 32)
