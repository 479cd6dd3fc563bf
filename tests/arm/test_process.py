"""The arm process as a whole: killed, handed over, left alone, started twice."""

import json
import os
import signal
import time
from collections.abc import Callable

import pytest

from agent.config import StationConfig
from agent.errors import DeviceFault
from agent.messages import ArmEstop, ArmHandover, ArmQuery, ArmReset, ArmShutdown, Drive
from agent.virtual.calibration import save
from tests.arm.bench import SLOW_STEP_DEG, Bench, Nursery, biggest_difference

POSE = (20.0, -30.0, 30.0, 10.0, 5.0, 50.0)


def test_a_killed_process_is_replaced_within_1500_ms_and_the_arm_never_jumps(bench: Bench) -> None:
    pid = bench.start()
    bench.follow(POSE)
    before = bench.follower.joints_deg()
    bench.kill(pid)
    assert bench.torque() == [True] * 6
    begin = time.monotonic()
    bench.start()
    assert time.monotonic() - begin < 1.5
    report = bench.ask(ArmQuery())
    assert report.drive is Drive.HOLD
    assert "torque was on" in report.reason
    bench.wait_for_ticks(10)
    assert biggest_difference(bench.follower.joints_deg(), before) < 0.5
    assert bench.biggest_step_deg() < SLOW_STEP_DEG


def test_a_servo_that_rebooted_while_nobody_looked_is_found_at_start(bench: Bench) -> None:
    pid = bench.start()
    bench.follow(POSE)
    bench.kill(pid)
    with bench.follower.locked():
        bench.follower.servo(3).power_cycle()
    bench.start()
    report = bench.ask(ArmQuery())
    assert report.drive is Drive.HOLD
    assert "elbow_flex lost torque" in report.reason
    bench.wait_for_ticks(5)
    assert bench.torque() == [True, True, False, True, True, True]
    mark = bench.follower.goals.count
    bench.drive(Drive.HOLD)
    bench.wait_for_ticks(5)
    assert bench.torque() == [True] * 6
    assert bench.biggest_step_deg(mark) < 0.2


def test_an_estop_survives_the_death_of_the_process(bench: Bench) -> None:
    pid = bench.start()
    bench.drive(Drive.HOLD)
    bench.ask(ArmEstop("smoke"))
    latch = json.loads(bench.config.paths.estop_latch.read_text())
    assert latch["cause"] == "smoke"
    assert abs(latch["wall_s"] - time.time()) < 10
    bench.kill(pid)
    bench.start()
    report = bench.ask(ArmQuery())
    assert report.drive is Drive.ESTOP
    assert "smoke" in report.reason
    bench.wait(lambda report: report.estop_verified is True, 1)
    bench.ask(ArmReset("test"))
    assert not bench.config.paths.estop_latch.exists()
    pid = bench.ask(ArmQuery()).pid
    bench.kill(pid)
    bench.start()
    assert bench.ask(ArmQuery()).drive is Drive.HOLD


def test_a_handed_over_arm_keeps_its_torque(bench: Bench) -> None:
    pid = bench.start()
    bench.drive(Drive.HOLD)
    bench.ask(ArmHandover("update"))
    assert bench.ended(pid) == 0
    assert bench.torque() == [True] * 6


def test_a_new_process_takes_over_from_one_that_was_left_behind(bench: Bench) -> None:
    old = bench.start()
    bench.drive(Drive.HOLD)
    new = bench.start()
    assert bench.ended(old) == 0
    report = bench.ask(ArmQuery())
    assert (report.pid, report.drive) == (new, Drive.HOLD)
    assert bench.torque() == [True] * 6


def test_a_port_that_another_process_holds_is_refused_with_its_pid(bench: Bench, nursery: Nursery) -> None:
    first = bench.start()
    other = StationConfig.model_validate(
        bench.config.model_dump() | {"run_dir": bench.config.paths.state / "other", "station": "other"}
    )
    intruder = Bench(other, nursery).watch()  # its arms never appear; the ports are those of the first
    try:
        intruder.start(connected=False)
        intruder.wait(lambda report: f"held by process {first}" in report.reason, 2)
        intruder.wait(lambda report: f"held by process {first}" in report.leader_reason, 2)
        bench.wait_for_ticks(5)
        assert bench.last.bus_connected
    finally:
        intruder.close(arms=False)


def test_an_arm_without_its_agent_holds_then_parks_and_exits(make_bench: Callable[..., Bench]) -> None:
    park = {"shoulder_lift": -15, "elbow_flex": 15, "wrist_flex": 0, "gripper": 50}
    bench = make_bench(safety={"park": park, "hold_park_after_s": 5})
    pid = bench.start()
    bench.follow()
    bench.heartbeats.clear()
    assert 2 < bench.wait(lambda report: report.supervisor_lost and report.drive is Drive.HOLD, 5) < 3.6
    bench.heartbeats.set()
    bench.wait(lambda report: not report.supervisor_lost, 2)
    assert bench.last.drive is Drive.HOLD, "it does not follow again by itself"
    bench.heartbeats.clear()
    bench.wait(lambda report: report.drive is Drive.PARK, 7)
    assert bench.ended(pid) == 0
    assert bench.torque() == [False] * 6


def test_sigterm_parks_and_releases_also_without_an_agent(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(safety={"park": {"shoulder_lift": -15, "elbow_flex": 15, "wrist_flex": 0, "gripper": 50}})
    pid = bench.start()
    bench.drive(Drive.HOLD)
    bench.heartbeats.clear()
    bench.wait(lambda report: report.supervisor_lost, 5)
    os.kill(pid, signal.SIGTERM)
    assert bench.ended(pid) == 0
    assert bench.torque() == [False] * 6


def test_leaving_with_a_servo_missing_releases_the_others(bench: Bench) -> None:
    pid = bench.start()
    bench.drive(Drive.HOLD)
    bench.follower.servo(2).present = False
    bench.wait(lambda report: report.drive is Drive.OFFLINE, 1)
    bench.ask(ArmShutdown("test"))
    assert bench.ended(pid) == 0
    assert bench.torque() == [False, True, False, False, False, False]


@pytest.mark.parametrize("hz", [30, 100])
def test_the_loop_keeps_its_rate(make_bench: Callable[..., Bench], hz: int) -> None:
    bench = make_bench(robot={"control_hz": hz})
    bench.start()
    bench.follow()
    ticks = bench.wait_for_ticks(2 * hz)
    assert all(tick.drive is Drive.FOLLOW for tick in ticks)
    assert sum(tick.measured is None or tick.sent is None for tick in ticks) < len(ticks) / 20
    skipped = (ticks[-1].due_ns - ticks[0].due_ns) * hz / 1e9 - (len(ticks) - 1)
    assert skipped < len(ticks) / 20, "this host may be busy, but not that busy"
    loop = bench.ask(ArmQuery()).loop
    assert loop is not None
    assert abs(loop.rate_hz / hz - 1) < 0.05
    assert loop.scheduling


def _of_another_arm(bench: Bench) -> dict[str, dict[str, int]]:
    return {
        name: joint | {"homing_offset": joint["homing_offset"] + 300}
        for name, joint in bench.follower.calibration.items()
    }


def test_the_calibration_of_another_arm_keeps_the_arm_limp(bench: Bench) -> None:
    save(bench.config.paths.follower_calibration, _of_another_arm(bench))
    bench.start()
    report = bench.ask(ArmQuery())
    assert report.drive is Drive.LIMP
    assert "calibration of another arm" in report.reason
    assert report.measured is None
    for drive in (Drive.HOLD, Drive.ALIGN, Drive.PARK):
        with pytest.raises(DeviceFault, match="another arm"):
            bench.drive(drive)
    assert bench.torque() == [False] * 6
    assert bench.follower.servo(1).get(31) == bench.follower.calibration["shoulder_pan"]["homing_offset"]


def test_an_arm_under_torque_with_a_foreign_calibration_is_left_alone_and_can_be_released(bench: Bench) -> None:
    pid = bench.start()
    bench.drive(Drive.HOLD)
    bench.kill(pid)
    save(bench.config.paths.follower_calibration, _of_another_arm(bench))
    bench.start()
    assert bench.ask(ArmQuery()).drive is Drive.HOLD
    mark = bench.follower.goals.count
    bench.wait_for_ticks(10)
    assert bench.follower.goals.count == mark
    assert bench.drive(Drive.LIMP).torque_on is False


def test_an_arm_without_a_calibration_file_says_what_to_do(bench: Bench) -> None:
    bench.config.paths.follower_calibration.unlink()
    bench.start()
    report = bench.ask(ArmQuery())
    assert "no calibration file" in report.reason
    assert "so-agent calibrate" in report.reason
    with pytest.raises(DeviceFault, match="no calibration file"):
        bench.drive(Drive.HOLD)


def test_a_broken_calibration_file_is_named_and_the_arm_can_be_released(bench: Bench) -> None:
    pid = bench.start()
    bench.drive(Drive.HOLD)
    bench.kill(pid)
    bench.config.paths.follower_calibration.write_text('{"shoulder_pan": {"id": 1,')
    bench.start()
    report = bench.ask(ArmQuery())
    assert "no calibration file" in report.reason
    assert report.drive is Drive.HOLD
    assert bench.drive(Drive.LIMP).torque_on is False


def test_a_leader_with_another_arms_calibration_is_not_followed(bench: Bench) -> None:
    assert bench.config.paths.leader_calibration
    save(bench.config.paths.leader_calibration, bench.follower.calibration)
    bench.start(connected=False)
    bench.wait(lambda report: "another arm" in report.leader_reason, 3)
    with pytest.raises(DeviceFault, match="leader"):
        bench.drive(Drive.ALIGN)
