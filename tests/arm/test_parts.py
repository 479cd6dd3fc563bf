"""The small parts of the control loop, with time in the tests' hands."""

import threading
from dataclasses import replace
from pathlib import Path

from agent.config import Safety as SafetyConfig
from agent.messages import JOINTS
from agent.robot import estop
from agent.robot.health import GRIP_RELIEF_PCT, Health, alarm_words
from agent.robot.pacing import Pacer, prefer
from agent.robot.registers import Live

MS = 1_000_000


class ManualClock:
    def __init__(self) -> None:
        self.ns = 0

    def now_ns(self) -> int:
        return self.ns

    def wall_s(self) -> float:
        return 0.0


def test_deadlines_never_drift() -> None:
    clock = ManualClock()
    pacer = Pacer(clock, 30)
    for _ in range(30 * 3600):
        clock.ns = pacer.due_ns()
        pacer.begin()
        pacer.end()
    assert pacer.due_ns() == 3600 * 1_000_000_000
    assert pacer.overruns == 0


def test_a_tick_that_takes_too_long_skips_deadlines_and_is_counted() -> None:
    clock = ManualClock()
    pacer = Pacer(clock, 100)
    pacer.begin()
    clock.ns += 35 * MS
    pacer.end()
    assert pacer.due_ns() == 40 * MS
    assert pacer.overruns == 3
    clock.ns = 40 * MS
    assert pacer.begin() == (40 * MS, 0)
    clock.ns = 95 * MS
    pacer.end(forgive=True)
    assert pacer.overruns == 3


def test_statistics_tell_the_period_error() -> None:
    clock = ManualClock()
    pacer = Pacer(clock, 100)
    assert pacer.stats("x") is None
    for late_ms in (0, 0, 2, 0, 0):
        clock.ns = pacer.due_ns() + late_ms * MS
        assert pacer.begin()[1] == late_ms * MS
        pacer.end()
    stats = pacer.stats("SCHED_FIFO 10")
    assert stats is not None
    assert stats.period_error_max_ms == 2
    assert stats.rate_hz == 100


def test_an_estop_ends_the_wait_at_once() -> None:
    wake = threading.Event()
    wake.set()
    pacer = Pacer(ManualClock(), 10)
    assert pacer.wait(wake)  # due now
    pacer.end()
    assert not pacer.wait(wake)


def test_scheduling_is_reported_in_words() -> None:
    assert "realtime_priority is 0" in prefer(0)


COOL = Live(
    torque_on=True,
    acceleration=254,
    goal=2000,
    position=2000,
    velocity=0,
    load_pct=0.0,
    voltage_v=7.4,
    temperature_c=30.0,
    status_bits=0,
)


def test_a_stall_is_load_without_movement_for_some_time() -> None:
    health = Health(SafetyConfig(stall_after_s=1.0))
    pushing = replace(COOL, load_pct=-95.0)
    health.saw("elbow_flex", pushing, 0)
    health.saw("elbow_flex", replace(pushing, position=2100), 900 * MS)  # it moves
    health.saw("elbow_flex", replace(pushing, position=2101), 1800 * MS)
    assert health.verdict().stalled == ()
    health.saw("elbow_flex", replace(pushing, position=2102), 1901 * MS)
    assert health.verdict().stalled == ("elbow_flex",)
    health.saw("elbow_flex", COOL, 2000 * MS)
    assert health.verdict().stalled == ()


def test_status_bits_become_words_and_verdicts() -> None:
    assert alarm_words(0) == ()
    assert alarm_words(1 | 4 | 32) == ("voltage", "overheated", "overload")
    health = Health(SafetyConfig())
    health.saw_bits(dict.fromkeys(JOINTS, 0) | {"wrist_flex": 4, "gripper": 32, "shoulder_pan": 33})
    verdict = health.verdict()
    assert verdict.hot == ("wrist_flex",)
    assert verdict.stalled == ("shoulder_pan",)
    assert verdict.low_voltage == ("shoulder_pan",)
    assert verdict.gripper_overload
    health.forget()
    assert health.verdict().hot == ()


def test_only_an_overloaded_gripper_is_relieved_and_keeps_its_grip() -> None:
    health = Health(SafetyConfig())
    wanted, measured = (0.0,) * 5 + (0.0,), (0.0,) * 5 + (30.0,)
    assert health.relieve(wanted, measured) == (wanted, ())
    health.saw_bits({"gripper": 32})
    assert health.relieve(wanted, None) == (wanted, ())
    eased, limits = health.relieve(wanted, measured)
    assert eased == (0.0,) * 5 + (30.0 - GRIP_RELIEF_PCT,)
    assert [(limit.joint, limit.kind) for limit in limits] == [("gripper", "load")]


def test_temperature_and_voltage_raise_alarms_before_the_servo_does() -> None:
    health = Health(SafetyConfig(max_temperature_c=60, min_voltage_v=6))
    health.saw("gripper", replace(COOL, temperature_c=61.0, voltage_v=5.9), 0)
    report = health.servos()[-1]
    assert report.alarms == ("overheated", "voltage")
    assert report.temperature_c == 61


def test_the_estop_latch_is_durable_and_a_damaged_one_still_latches(tmp_path: Path) -> None:
    path = tmp_path / "state" / "estop.json"
    assert estop.read(path) is None
    estop.write(path, estop.Latch("smoke", 12.5))
    assert estop.read(path) == estop.Latch("smoke", 12.5)
    path.write_text("{")
    latch = estop.read(path)
    assert latch is not None
    assert "cannot be read" in latch.cause
    estop.clear(path)
    estop.clear(path)
    assert estop.read(path) is None
