"""The drives one after the other on lerobot's own driver, tick by tick, with time in the test's hands."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from agent.errors import EstopLatched
from agent.messages import Drive, Joints, Source
from agent.robot import port
from agent.robot.execution import Executor
from agent.robot.leader import Leader
from agent.robot.pilot import Pilot
from agent.virtual.arm import KinematicPlant, VirtualArm, default_calibration
from agent.virtual.calibration import save
from agent.virtual.servo import Status
from tests.daemon.clocks import HandClock
from tests.virtual.waiting import until

HZ = 10
PLANT_STEP_S = 0.005
REPLY_S = 0.1  # the most that can be configured
WRITE_S = 10.0
TICKS = 200
"""20 s: more than aligning or parking takes. None of them is waited for."""

START: Joints = (10.0, -20.0, 30.0, 0.0, 0.0, 50.0)
LED: Joints = (0.0, -40.0, 40.0, 10.0, 0.0, 20.0)
GRIPPER = 6


class Steps:
    """Two virtual arms that move only when a tick is made, and a pilot without a process around it."""

    def __init__(self, make_config: Callable[..., Any]) -> None:
        plain = make_config()
        robot = plain.model_dump(mode="json")["robot"]
        # A loaded machine may take as long as it likes for a tick.
        config = make_config(
            robot=robot | {"control_hz": HZ, "bus_timeout_ms": REPLY_S * 1000},
            safety={"stale_action_ms": 1000, "park": {"shoulder_lift": -60, "elbow_flex": 60, "wrist_flex": 20}},
            recording={"fps": HZ},
        )
        ours, theirs = default_calibration("so101"), default_calibration("so101", "leader")
        save(config.paths.follower_calibration, ours)
        save(config.paths.leader_calibration, theirs)
        config.paths.run.mkdir(parents=True, exist_ok=True)
        self.config = config
        self.clock = HandClock()
        self.follower = VirtualArm(config.robot.follower.port, ours, moved=False)
        self.led = VirtualArm(config.robot.leader.port, theirs, moved=False)
        self.follower.set_joints_deg(START)
        self.led.set_joints_deg(LED)
        self._plant = KinematicPlant(self.follower.bus)
        self._executor = Executor(config, self.clock)
        self._leader = Leader(config, self.clock)
        self.pilot = Pilot(config, self.clock, self._leader, self._executor)
        self.sources: list[Source] = []
        self._heard_ns = self.clock.now_ns()

    def __enter__(self) -> "Steps":
        self.follower.start()
        self.led.start()
        self._leader.start()
        until(lambda: self._leader.read() is not None, "the leader is read", 10.0)
        return self

    def __exit__(self, *_: object) -> None:
        self.pilot.bus.close()
        self._leader.close()
        self._executor.close()
        self.follower.stop()
        self.led.stop()

    def tick(self, alone: bool = False) -> None:
        """As the control loop makes it."""
        self.clock.pass_s(1 / HZ)
        for _ in range(round(1 / HZ / PLANT_STEP_S)):
            self._plant.step(PLANT_STEP_S)
        self.pilot.connect()
        self.pilot.read()
        self._leader.read()
        self._heard_ns = self._heard_ns if alone else self.clock.now_ns()
        self.pilot.judge(self._heard_ns)
        requested, source = self.pilot.choose()
        sent, _ = self.pilot.send(requested)
        self.sources.append(source if sent else Source.NONE)
        self.pilot.bus.poll()

    def until(self, drive: Drive, alone: bool = False) -> None:
        for _ in range(TICKS):
            self.tick(alone)
            if self.pilot.drive is drive:
                return
        pytest.fail(f"not in {TICKS} ticks: {drive}; it is {self.pilot.drive}, {self.pilot.reason}")

    def torque(self) -> set[bool]:
        with self.follower.locked() as servos:
            return {servo.torque_enabled for servo in servos}


@pytest.fixture
def steps(make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    monkeypatch.setattr(port, "WRITE_TIMEOUT_S", WRITE_S)
    with Steps(make_config) as made:
        made.until(Drive.LIMP)
        yield made


def apart(a: Joints, b: Joints) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def test_an_arm_is_held_led_parked_and_released_without_a_jump(steps: Steps) -> None:
    pilot = steps.pilot
    assert steps.torque() == {False}
    pilot.change(Drive.HOLD, "a test")
    steps.tick()
    assert steps.torque() == {True}
    assert apart(steps.follower.joints_deg(), START) < 0.2
    pilot.change(Drive.ALIGN, "a test")
    steps.until(Drive.FOLLOW)
    for _ in range(3 * HZ):
        steps.tick()
    assert apart(steps.follower.joints_deg(), LED) < 0.5
    pilot.change(Drive.PARK, "a test")
    steps.until(Drive.LIMP)
    assert pilot.reason == "parked: a test"
    assert steps.torque() == {False}
    assert apart(steps.follower.joints_deg(), (0.0, -60.0, 60.0, 20.0, 0.0, 5.0)) < 3.0
    order = list(dict.fromkeys(steps.sources))
    assert order == [Source.NONE, Source.HOLD, Source.ALIGN, Source.LEADER, Source.PARK]
    packets = steps.follower.goals.packets()
    moves = [abs(b[i] - a[i]) for (_, a), (_, b) in pairwise(packets) for i in a if i in b]
    assert max(moves) * 360 / 4096 < 240 / HZ + 0.2


def test_servos_that_kept_their_torque_go_on_from_their_last_command(steps: Steps) -> None:
    steps.pilot.change(Drive.HOLD, "a test")
    steps.tick()
    with steps.follower.locked():
        steps.follower.servo(3).power_cycle()
    for _ in range(3 * HZ):
        steps.tick()
    assert "elbow_flex lost torque" in steps.pilot.reason
    before = steps.pilot.command
    steps.follower.set_joints_deg((*START[:2], START[2] + 15.0, *START[3:]))  # it sank; the others sag a little
    steps.tick()
    steps.pilot.change(Drive.HOLD, "a test")
    after = steps.pilot.command
    assert before
    assert after
    assert [i for i in range(6) if abs(after[i] - before[i]) > 0.1] == [2]
    assert after[2] == pytest.approx(START[2] + 15.0, abs=0.2)
    assert steps.torque() == {True}


def test_a_stalled_arm_stays_where_it_is_and_an_overloaded_gripper_is_only_eased(steps: Steps) -> None:
    steps.pilot.change(Drive.ALIGN, "a test")
    steps.until(Drive.FOLLOW)
    with steps.follower.locked():
        gripper = steps.follower.servo(GRIPPER)
        gripper.stalled = True
        gripper.latch(Status.OVERLOAD)
    steps.led.set_joints_deg((*LED[:5], 0.0))
    for _ in range(HZ):
        steps.tick()
    assert steps.pilot.drive is Drive.FOLLOW
    command, measured = steps.pilot.command, steps.pilot.measured
    assert command
    assert measured
    assert abs(command[-1] - measured[-1]) < 5.5
    with steps.follower.locked():
        steps.follower.servo(2).latch(Status.OVERLOAD)
    steps.until(Drive.HOLD)
    assert "shoulder_lift stalled or overloaded" in steps.pilot.reason
    steps.tick()
    assert steps.pilot.command
    assert apart(steps.pilot.command, steps.follower.joints_deg()) < 1.0


def test_an_estop_stays_latched_until_it_is_reset(steps: Steps) -> None:
    pilot = steps.pilot
    pilot.change(Drive.ALIGN, "a test")
    steps.tick()
    pilot.emergency("a hand")
    assert (pilot.drive, pilot.reason, pilot.estop_verified) == (Drive.ESTOP, "emergency stop: a hand", True)
    steps.tick()
    assert steps.sources[-1] is Source.NONE
    with pytest.raises(EstopLatched, match="a hand"):
        pilot.change(Drive.PARK, "a test")
    pilot.change(Drive.LIMP, "somebody is caught")
    assert steps.torque() == {False}
    assert pilot.reason == "emergency stop: a hand; released"
    pilot.reset()
    assert (pilot.drive, pilot.estop_verified) == (Drive.LIMP, None)
    pilot.change(Drive.HOLD, "a test")
    assert steps.torque() == {True}


def test_an_arm_without_its_agent_holds_parks_and_leaves_and_stays_when_the_agent_is_back(steps: Steps) -> None:
    pilot = steps.pilot
    pilot.change(Drive.ALIGN, "a test")
    steps.until(Drive.HOLD, alone=True)
    assert "the agent is gone" in pilot.reason
    steps.clock.pass_s(60)
    steps.until(Drive.PARK, alone=True)
    steps.tick()
    assert (pilot.drive, pilot.reason) == (Drive.HOLD, "the agent is back")
    steps.clock.pass_s(60)
    steps.until(Drive.LIMP, alone=True)
    steps.tick(alone=True)
    assert pilot.done
    assert steps.torque() == {False}
