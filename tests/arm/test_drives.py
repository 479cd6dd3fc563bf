"""What a person sees the arm do, command by command."""

import threading
import time
from collections.abc import Callable

import pytest

from agent.errors import EstopLatched, Refused
from agent.messages import ArmEstop, ArmQuery, ArmReset, ArmShutdown, Drive, Source
from agent.virtual.servo import Register
from tests.arm.bench import SLOW_STEP_DEG, Bench, biggest_difference

POSE = (20.0, -30.0, 30.0, 10.0, 5.0, 50.0)


def test_a_limp_arm_stays_limp_until_it_is_asked(bench: Bench) -> None:
    bench.start()
    report = bench.ask(ArmQuery())
    assert report.drive is Drive.LIMP
    assert not report.torque_on
    bench.wait_for_ticks(5)
    assert bench.torque() == [False] * 6
    assert bench.follower.goals.count == 0


def test_torque_comes_on_without_a_jump(bench: Bench) -> None:
    bench.follower.set_joints_deg(POSE)
    bench.start()
    report = bench.drive(Drive.HOLD)
    assert report.drive is Drive.HOLD
    assert bench.torque() == [True] * 6
    bench.wait_for_ticks(10)
    assert biggest_difference(bench.follower.joints_deg(), POSE) < 0.2
    assert bench.biggest_step_deg() < 0.1


def test_the_follower_aligns_slowly_and_then_follows(bench: Bench) -> None:
    bench.start()
    bench.leader.set_joints_deg(POSE)
    bench.drive(Drive.ALIGN)
    took_s = bench.wait(lambda report: report.drive is Drive.FOLLOW, 5)
    assert took_s > 0.8  # 30 degrees at 30 degrees a second
    assert bench.biggest_step_deg() < SLOW_STEP_DEG
    bench.leader.set_joints_deg((25.0, -25.0, 25.0, 15.0, 0.0, 60.0))
    bench.wait_until(lambda: biggest_difference(bench.follower.joints_deg(), bench.leader.joints_deg()) < 1, 2)
    tick = bench.wait_for_ticks(2)[-1]
    assert tick.source is Source.LEADER
    assert tick.leader is not None
    assert tick.sent is not None
    assert biggest_difference(tick.sent, tick.leader) < 0.1


def test_a_leader_that_jumps_is_followed_no_faster_than_allowed(bench: Bench) -> None:
    bench.start()
    bench.follow()
    bench.wait_for_ticks(35)  # the soft start is over
    mark = bench.follower.goals.count
    bench.leader.set_joints_deg((80.0, 40.0, -60.0, 10.0, 100.0, 90.0))
    bench.wait_until(lambda: abs(bench.follower.joints_deg()[0] - 80) < 2, 3)
    period_s = 1 / 30
    assert bench.biggest_step_deg(mark) < 240 * 2 * period_s
    assert any(limit.kind == "speed" for tick in bench.ticks for limit in tick.limits)


def test_what_a_tick_reports_as_sent_is_what_was_on_the_wire(bench: Bench) -> None:
    bench.start()
    bench.follow()
    mark = bench.follower.goals.count
    begin = len(bench.ticks)
    bench.leader.set_joints_deg((10.0, 10.0, 10.0, 10.0, 10.0, 40.0))
    bench.wait_for_ticks(20)
    bench.ask(ArmEstop("end of the recording"))
    scale = bench.follower.scale
    on_wire = []
    for _, goals in bench.follower.goals.since(mark):
        offsets = [bench.follower.servo(i + 1).get(31) for i in range(6)]
        on_wire.append(tuple(scale.to_joint(i, goals[i + 1] + offsets[i]) for i in range(6)))
    sent = [tick.sent for tick in bench.ticks[begin:] if tick.sent and tick.source is Source.LEADER]
    assert len(sent) >= 15
    for action in sent[1:]:
        assert min(biggest_difference(action, wire) for wire in on_wire) < 1e-6  # type: ignore[arg-type]


def test_hold_keeps_the_last_command(bench: Bench) -> None:
    bench.start()
    bench.follow(POSE)
    before = bench.drive(Drive.HOLD).sent
    bench.leader.set_joints_deg((0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    tick = bench.wait_for_ticks(10)[-1]
    assert tick.source is Source.HOLD
    assert tick.sent is not None
    assert before is not None
    assert biggest_difference(tick.sent, before) < 0.1


def test_park_moves_slowly_and_then_lets_go(make_bench: Callable[..., Bench]) -> None:
    park = {"shoulder_pan": 5, "shoulder_lift": -20, "elbow_flex": 20, "wrist_flex": 10, "wrist_roll": 0, "gripper": 40}
    bench = make_bench(safety={"park": park})
    bench.start()
    bench.drive(Drive.PARK)
    bench.wait(lambda report: report.drive is Drive.LIMP and "parked" in report.reason, 4)
    assert bench.torque() == [False] * 6
    assert biggest_difference(bench.follower.joints_deg(), (5.0, -20.0, 20.0, 10.0, 0.0, 40.0)) < 3.5
    assert bench.biggest_step_deg() < SLOW_STEP_DEG


def test_shutdown_parks_releases_and_exits(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(safety={"park": {"shoulder_lift": -15, "elbow_flex": 15, "wrist_flex": 0, "gripper": 50}})
    pid = bench.start()
    bench.drive(Drive.HOLD)
    bench.ask(ArmShutdown("the test is over"))
    assert bench.ended(pid, 5) == 0
    assert bench.torque() == [False] * 6
    assert abs(bench.follower.joints_deg()[1] + 15) < 3.5


def test_actions_of_a_policy_are_refused_while_there_is_none(bench: Bench) -> None:
    bench.start()
    with pytest.raises(Refused, match="no policy"):
        bench.drive(Drive.EXECUTE)


def _align(bench: Bench) -> None:
    bench.leader.set_joints_deg((90.0, 0.0, 0.0, 0.0, 0.0, 50.0))
    bench.drive(Drive.ALIGN)


ROADS: dict[Drive, Callable[[Bench], object]] = {
    Drive.LIMP: lambda bench: None,
    Drive.HOLD: lambda bench: bench.drive(Drive.HOLD),
    Drive.ALIGN: _align,
    Drive.FOLLOW: lambda bench: bench.follow(),
    Drive.PARK: lambda bench: bench.drive(Drive.PARK),
}


@pytest.mark.parametrize("drive", ROADS)
def test_an_estop_reaches_the_bus_within_100_ms_from_every_drive(bench: Bench, drive: Drive) -> None:
    bench.start()
    ROADS[drive](bench)
    bench.wait(lambda report: report.drive is drive, 2)
    torque = bench.torque()
    began_ns = time.monotonic_ns()
    report = bench.ask(ArmEstop("test"))
    assert report.drive is Drive.ESTOP
    assert report.estop_verified is True
    assert report.at_ns - began_ns < 100e6  # the report is made after reading back
    assert bench.follower.goals.packets()[-1][0] - began_ns < 100e6 if any(torque) else True
    with bench.follower.locked() as servos:
        for servo in servos:
            assert not servo.torque_enabled or abs(servo.get(Register.GOAL_POSITION) - servo.present_position()) < 25
    assert bench.torque() == torque  # hold: torque stays as it was
    mark = bench.follower.goals.count
    bench.wait_for_ticks(10)
    assert bench.follower.goals.count == mark, "an e-stopped arm gets no goals"
    with pytest.raises(EstopLatched):
        bench.drive(Drive.HOLD)
    after = bench.ask(ArmReset("test"))
    assert after.drive is (Drive.HOLD if any(torque) else Drive.LIMP)
    assert bench.biggest_step_deg(mark) < 0.5


def test_an_arm_that_holds_in_an_estop_can_be_released_and_stays_latched(bench: Bench) -> None:
    """Somebody may be caught under it."""
    bench.start()
    bench.drive(Drive.HOLD)
    bench.ask(ArmEstop("test"))
    report = bench.drive(Drive.LIMP)
    assert report.drive is Drive.ESTOP
    assert bench.torque() == [False] * 6
    bench.wait_for_ticks(5)
    assert bench.torque() == [False] * 6
    with pytest.raises(EstopLatched):
        bench.drive(Drive.HOLD)
    assert bench.ask(ArmReset("test")).drive is Drive.LIMP


def test_a_limp_estop_releases_every_servo_within_100_ms(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(safety={"estop": "limp"})
    bench.start()
    bench.drive(Drive.HOLD)
    began_ns = time.monotonic_ns()
    report = bench.ask(ArmEstop("test"))
    assert report.estop_verified is True
    assert report.at_ns - began_ns < 100e6
    assert bench.torque() == [False] * 6
    assert bench.ask(ArmReset("test")).drive is Drive.LIMP


def test_an_estop_gets_through_while_no_servo_answers(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(safety={"estop": "limp"})
    bench.start()
    bench.drive(Drive.HOLD)
    bench.follower.faults.add("drop")
    bench.wait_until(lambda: bench.ticks[-1].measured is None, 1)
    sender = threading.Thread(target=bench.ask, args=(ArmEstop("test"),))
    begin = time.monotonic()
    sender.start()
    while any(bench.torque()) and time.monotonic() - begin < 1:
        time.sleep(0.001)
    assert time.monotonic() - begin < 0.1
    sender.join()
    assert bench.last.estop_verified is False
    bench.follower.faults.clear()
    bench.wait(lambda report: report.estop_verified is True, 2.5)
