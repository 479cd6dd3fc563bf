"""Each fault of the bus: what the arm does, and how soon."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from agent.errors import DeviceFault
from agent.messages import ArmEstop, ArmQuery, ArmReset, Drive
from agent.virtual.faults import ReplyFault, ReplyFaultKind
from agent.virtual.servo import Status
from tests.arm.bench import SLOW_STEP_DEG, Bench, biggest_difference

ELBOW, WRIST_ROLL, GRIPPER = 3, 5, 6
TICK_S = 1 / 30
STEP_COUNTS = 3
CYCLE = 200


@pytest.mark.parametrize("kind", ["drop", "corrupt", "truncate", "garbage"])
def test_one_bad_reply_costs_one_measurement_and_nothing_else(bench: Bench, kind: ReplyFaultKind) -> None:
    bench.start()
    bench.follow()
    begin = len(bench.ticks)
    bench.follower.faults.add(kind, ReplyFault(servo=ELBOW, instruction="sync_read", count=1))
    bench.wait_for_ticks(10)
    missing = [tick for tick in bench.ticks[begin:] if tick.measured is None]
    assert len(missing) <= 1
    assert {tick.drive for tick in bench.ticks[begin:]} == {Drive.FOLLOW}
    assert bench.biggest_step_deg() < SLOW_STEP_DEG


@contextmanager
def _moving(bench: Bench) -> Iterator[list[tuple[int, int]]]:
    """Moves all joints every 2 ms by the same few counts; yields the history of (since ns, step)."""
    history: list[tuple[int, int]] = []
    stop = threading.Event()
    with bench.follower.locked() as servos:
        base = [servo.position for servo in servos]

    def move() -> None:
        step = 0
        while not stop.wait(0.002):
            step = (step + 1) % CYCLE
            with bench.follower.locked() as servos:
                for servo, start in zip(servos, base, strict=True):
                    servo.position = start + step * STEP_COUNTS
                history.append((time.monotonic_ns(), step))

    thread = threading.Thread(target=move)
    thread.start()
    try:
        yield history
    finally:
        stop.set()
        thread.join()
        history.append((time.monotonic_ns() + 10**12, -1))  # the last step stays


FAULTS: dict[str, list[tuple[ReplyFaultKind, ReplyFault]]] = {
    "the last servo always answers a tick late": [("delay", ReplyFault(servo=GRIPPER, delay_ms=40))],
    "all answer late now and then": [("delay", ReplyFault(probability=0.2, delay_ms=25, seed=1))],
    "late beyond every time-out": [("delay", ReplyFault(servo=ELBOW, probability=0.3, delay_ms=110, seed=2))],
    "drops and noise": [
        ("drop", ReplyFault(probability=0.02, seed=3)),
        ("corrupt", ReplyFault(probability=0.02, seed=4)),
        ("truncate", ReplyFault(probability=0.02, seed=5)),
        ("garbage", ReplyFault(probability=0.02, seed=6)),
    ],
}


@pytest.mark.parametrize("faults", FAULTS)
def test_a_late_reply_is_never_taken_for_a_measurement(bench: Bench, faults: str) -> None:
    bench.start()
    scale, middle = bench.follower.scale, bench.follower.joints_deg()
    with _moving(bench) as history:
        bench.wait_for_ticks(3)
        begin = len(bench.ticks)
        for kind, fault in FAULTS[faults]:
            bench.follower.faults.add(kind, fault)
        bench.wait_for_ticks(45)
    good = 0
    for tick in bench.ticks[begin:]:
        if tick.measured is None:
            continue
        good += 1
        steps = {
            round((scale.to_counts(i, value) - scale.to_counts(i, middle[i])) / STEP_COUNTS)
            for i, value in enumerate(tick.measured)
        }
        assert len(steps) == 1, f"joints of different moments: {steps}"
        step = steps.pop()
        # The step must have been the present one at some time while this tick read.
        current = [
            since <= tick.read_ns and until >= tick.due_ns
            for (since, value), (until, _) in itertools.pairwise(history)
            if value == step
        ]
        assert any(current), f"tick {tick.seq} shows a pose that had passed"
    assert bench.follower.faults.hits > 0
    assert good > 0 or "always" in faults


def test_lost_power_is_noticed_within_300_ms_and_the_arm_comes_back_limp(bench: Bench) -> None:
    bench.start()
    bench.follow()
    bench.follower.set_power(False)
    assert bench.wait(lambda report: report.drive is Drive.OFFLINE and not report.bus_connected, 2) < 0.3
    bench.wait(lambda report: "power supply" in report.reason, 2)
    with pytest.raises(DeviceFault, match="offline"):
        bench.drive(Drive.HOLD)
    mark = bench.follower.goals.count
    bench.follower.set_power(True)
    bench.wait(lambda report: report.drive is Drive.LIMP and report.bus_connected, 2.5)
    bench.wait_for_ticks(10)
    assert bench.torque() == [False] * 6
    assert bench.follower.goals.count == mark, "nothing may move by itself"
    assert bench.last.reconnects == 1


def test_a_power_flicker_leaves_the_arm_limp_not_jumping(bench: Bench) -> None:
    bench.start()
    bench.follow((20.0, -20.0, 20.0, 0.0, 0.0, 50.0))
    with bench.follower.locked() as servos:
        for servo in servos:
            servo.power_cycle()
    bench.wait(lambda report: report.drive is Drive.LIMP, 1.0)
    assert "torque" in bench.last.reason


def test_an_unplugged_cable_is_noticed_within_300_ms_and_the_arm_is_adopted_without_a_jump(bench: Bench) -> None:
    bench.start()
    bench.follow((20.0, -20.0, 20.0, 0.0, 0.0, 50.0))
    before = bench.follower.joints_deg()
    bench.follower.port.unplug()
    assert bench.wait(lambda report: report.drive is Drive.OFFLINE, 2) < 0.3
    bench.leader.set_joints_deg((0.0, -10.0, 10.0, 0.0, 0.0, 50.0))
    bench.follower.port.replug()
    bench.wait(lambda report: report.drive is Drive.HOLD and report.bus_connected, 2.5)
    bench.wait_for_ticks(10)
    assert bench.torque() == [True] * 6
    assert biggest_difference(bench.follower.joints_deg(), before) < 0.5
    assert bench.biggest_step_deg() < SLOW_STEP_DEG
    bench.follow()


def test_a_missing_servo_is_named_with_its_cable_and_the_others_can_be_released(bench: Bench) -> None:
    bench.start()
    bench.drive(Drive.HOLD)
    bench.follower.servo(WRIST_ROLL).present = False
    assert bench.wait(lambda report: report.drive is Drive.OFFLINE, 2) < 0.35
    bench.wait(lambda report: "wrist_roll (id 5)" in report.reason, 2)
    assert "cable from wrist_flex (id 4) to wrist_roll" in bench.last.reason
    with pytest.raises(DeviceFault, match="Not released yet"):
        bench.drive(Drive.LIMP)
    others = [index for index in range(6) if index != WRIST_ROLL - 1]
    bench.wait_until(lambda: not any(bench.torque()[index] for index in others), 2.5)
    bench.follower.servo(WRIST_ROLL).present = True
    bench.wait(lambda report: report.drive is Drive.LIMP and report.bus_connected, 2.5)
    assert bench.torque() == [False] * 6


def test_a_rebooted_servo_is_noticed_within_a_second_and_engaged_only_on_command(bench: Bench) -> None:
    bench.start()
    bench.follow((20.0, -20.0, 20.0, 0.0, 0.0, 50.0))
    with bench.follower.locked():
        bench.follower.servo(ELBOW).power_cycle()
        bench.follower.servo(ELBOW).position += 150  # the forearm sinks
    assert bench.wait(lambda report: report.drive is Drive.HOLD and "elbow_flex lost torque" in report.reason, 2) < 1
    bench.wait_for_ticks(10)
    assert bench.torque() == [True, True, False, True, True, True]
    here = bench.follower.joints_deg()
    mark = bench.follower.goals.count
    bench.drive(Drive.HOLD)
    bench.wait_for_ticks(10)
    assert bench.torque() == [True] * 6
    assert biggest_difference(bench.follower.joints_deg(), here) < 0.5
    assert bench.biggest_step_deg(mark) < 0.2


def test_a_hot_servo_parks_the_arm_and_keeps_it_limp_until_it_is_cool(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(safety={"park": {"shoulder_lift": -15, "elbow_flex": 15, "wrist_flex": 0, "gripper": 50}})
    bench.start()
    bench.follow()
    bench.follower.servo(ELBOW).hot_c = 68.0
    assert bench.wait(lambda report: report.drive is Drive.PARK, 2) < 1
    bench.wait(lambda report: report.drive is Drive.LIMP, 4)
    assert "elbow_flex too hot" in bench.last.reason
    assert bench.torque() == [False] * 6
    assert "overheated" in bench.last.servos[ELBOW - 1].alarms
    with pytest.raises(DeviceFault, match="too hot"):
        bench.drive(Drive.HOLD)
    bench.follower.servo(ELBOW).hot_c = 40.0
    bench.wait(lambda report: report.servos[ELBOW - 1].temperature_c == 40, 2)
    bench.drive(Drive.HOLD)


def test_an_overloaded_joint_is_held_where_it_is_and_released_if_it_lasts(bench: Bench) -> None:
    bench.start()
    bench.follow()
    with bench.follower.locked():
        bench.follower.servo(ELBOW).latch(Status.OVERLOAD)
    assert bench.wait(lambda report: report.drive is Drive.HOLD and "elbow_flex" in report.reason, 1) < 0.2
    took_s = bench.wait(lambda report: report.drive is Drive.LIMP, 4)
    assert 1.5 < took_s < 3
    assert bench.torque() == [False] * 6


def test_a_stalled_joint_stops_pushing(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(safety={"stall_after_s": 0.4})
    bench.start()
    bench.follow()
    bench.follower.servo(ELBOW).stalled = True
    bench.leader.set_joints_deg((0.0, 0.0, 40.0, 0.0, 0.0, 50.0))
    assert bench.wait(lambda report: report.drive is Drive.HOLD and "stalled" in report.reason, 3) < 1.5
    bench.wait_until(lambda: bench.follower.servo(ELBOW).effort == 0, 1)
    assert bench.torque() == [True] * 6


def test_an_overloaded_gripper_is_eased_while_teleoperation_goes_on(bench: Bench) -> None:
    bench.start()
    bench.follow()
    gripper = bench.follower.servo(GRIPPER)
    gripper.stalled = True  # there is something between the jaws
    with bench.follower.locked():
        gripper.latch(Status.OVERLOAD)
    bench.leader.set_joints_deg((0.0, 0.0, 0.0, 0.0, 0.0, 10.0))
    bench.wait_until(lambda: any(limit.kind == "load" for limit in bench.ticks[-1].limits), 2)
    tick = bench.wait_for_ticks(3)[-1]
    assert tick.drive is Drive.FOLLOW
    assert tick.sent is not None
    assert tick.measured is not None
    assert abs(tick.sent[-1] - tick.measured[-1]) < 5.5
    assert "overload" in bench.ask(ArmQuery()).servos[GRIPPER - 1].alarms


def test_a_voltage_dip_holds_and_teleoperation_is_refused_until_it_is_over(bench: Bench) -> None:
    bench.start()
    bench.follow()
    for servo in bench.follower.servos:
        servo.supply_v = 3.8
    assert bench.wait(lambda report: report.drive is Drive.HOLD and "low voltage" in report.reason, 1) < 0.3
    with pytest.raises(DeviceFault, match="Low voltage"):
        bench.drive(Drive.ALIGN)
    for servo in bench.follower.servos:
        servo.supply_v = 7.4
    bench.wait(lambda report: not any(servo.alarms for servo in report.servos), 2)
    bench.follow()


def test_a_servo_with_an_alarm_does_not_prevent_connecting_or_releasing(bench: Bench) -> None:
    with bench.follower.locked() as servos:
        for servo in servos:
            servo.supply_v = 3.8
    bench.start()
    bench.drive(Drive.HOLD)
    assert bench.torque() == [True] * 6
    bench.drive(Drive.LIMP)
    assert bench.torque() == [False] * 6


def test_an_unplugged_leader_holds_the_follower_and_costs_it_no_tick(bench: Bench) -> None:
    bench.start()
    bench.follow()
    bench.wait(lambda report: report.loop is not None, 3)  # it counts from its first full second on
    begin = len(bench.ticks)
    overruns = bench.ask(ArmQuery()).loop
    bench.leader.port.unplug()
    took_s = bench.wait(lambda report: report.drive is Drive.HOLD, 2)
    assert took_s < 0.15 + 3 * TICK_S
    bench.wait(lambda report: not report.leader_connected, 1)
    assert "start teleop again" in bench.last.reason
    bench.leader.port.replug()
    bench.wait(lambda report: report.leader_connected, 3)
    bench.wait_for_ticks(10)
    assert bench.last.drive is Drive.HOLD, "it does not follow again by itself"
    assert all(tick.measured for tick in bench.ticks[begin:])
    after = bench.ask(ArmQuery()).loop
    assert overruns is not None
    assert after is not None
    assert after.overruns == overruns.overruns
    bench.follow()


def test_a_leader_without_power_holds_the_follower(bench: Bench) -> None:
    bench.start()
    bench.follow()
    bench.leader.set_power(False)
    assert bench.wait(lambda report: report.drive is Drive.HOLD, 2) < 0.15 + 3 * TICK_S
    bench.wait(lambda report: "power" in report.leader_reason, 2)
    with pytest.raises(DeviceFault, match="leader"):
        bench.drive(Drive.ALIGN)


def test_single_lost_leader_readings_do_not_interrupt_teleoperation(bench: Bench) -> None:
    bench.start()
    bench.follow()
    begin = len(bench.ticks)
    bench.leader.faults.add("drop", ReplyFault(probability=0.03, seed=7))
    bench.wait_for_ticks(40)
    assert any(tick.leader is None for tick in bench.ticks[begin:])
    assert {tick.drive for tick in bench.ticks[begin:]} == {Drive.FOLLOW}


def test_an_estop_on_a_silent_bus_is_applied_and_proved_when_it_is_back(bench: Bench) -> None:
    bench.start()
    bench.follow()
    bench.follower.port.unplug()
    report = bench.ask(ArmEstop("test"))
    assert report.drive is Drive.ESTOP
    assert report.estop_verified is False
    bench.follower.port.replug()
    bench.wait(lambda report: report.estop_verified is True, 2.5)
    assert bench.last.drive is Drive.ESTOP
    assert bench.ask(ArmReset("test")).drive is Drive.HOLD


@pytest.mark.parametrize("mode", ["hold", "limp"])
def test_an_estop_with_a_servo_missing_still_stops_the_others(make_bench: Callable[..., Bench], mode: str) -> None:
    bench = make_bench(safety={"estop": mode})
    bench.start()
    bench.drive(Drive.HOLD)
    bench.follower.servo(ELBOW).present = False
    report = bench.ask(ArmEstop("test"))
    assert report.estop_verified is False
    with bench.follower.locked() as servos:
        for servo in servos:
            if servo.present and mode == "limp":
                assert not servo.torque_enabled
            elif servo.present:
                assert abs(servo.get(42) - servo.present_position()) <= 1
    bench.follower.servo(ELBOW).present = True
    bench.wait(lambda report: report.estop_verified is True, 2.5)
