"""What the benchmark of wanting the arm concludes from what it saw, however much of it there is."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agent.messages import JOINTS, Drive, Source, Tick
from benchmarks.preemption_bench.report import Findings, Start, result, show, verdict
from benchmarks.preemption_bench.ticks import first_obeying, period_errors_ms

MS = 1_000_000
ROOT = Path(__file__).resolve().parents[2]


def starts(*first_tick_ms: float) -> list[Start]:
    return [Start("working", "training", each, each / 2, 12.0) for each in first_tick_ms]


def seen(**parts: Any) -> Findings:
    return Findings(**{"idle": starts(30, 40, 50), "wanted": starts(35, 60), **parts})


def tick(seq: int, drive: Drive = Drive.LIMP, late_ms: float = 0.0, sent: bool = False) -> Tick:
    due_ns = seq * 33 * MS
    joints = (0.0,) * len(JOINTS) if sent else None
    return Tick(seq, due_ns, due_ns + 2 * MS, drive, Source.HOLD, sent=joints, late_ns=int(late_ms * MS))


def test_nothing_seen_is_a_result_too() -> None:
    found = result(Findings(ended="the station is ready"))
    assert found["first_tick_ms"] == {"idle": None, "training": None}
    assert verdict(found) == []
    show(found, Console(quiet=True))
    json.dumps(found)


def test_a_run_that_is_cut_short_tells_what_it_saw() -> None:
    found = result(seen(ended="interrupted", idle_errors_ms=[[0.1, 0.2]]))
    assert found["ended_early"] == "interrupted"
    assert found["first_tick_ms"]["training"]["max"] == 60
    assert found["period_error_ms"]["training"] is None
    show(found, Console(quiet=True))


@pytest.mark.parametrize(("late_ms", "met"), [(140.0, True), (140.1, False)])
def test_the_first_tick_may_be_100_ms_later_than_the_median_of_an_idle_station(late_ms: float, met: bool) -> None:
    [sentence, *_] = verdict(result(seen(wanted=starts(35, late_ms))))
    assert sentence.endswith("met." if met else "MISSED.")


@pytest.mark.parametrize(("p99_ms", "met"), [(1.1, True), (1.2, False)])
def test_the_loop_may_be_a_tenth_less_regular(p99_ms: float, met: bool) -> None:
    """One idle window in which the machine did something else makes it no easier."""
    found = result(seen(idle_errors_ms=[[1.0], [50.0], [0.9, 1.0]], training_errors_ms=[[p99_ms]]))
    assert verdict(found)[1].endswith("met." if met else "MISSED.")


@pytest.mark.parametrize("bad", [{"learns_after_s": [20.0, 121.0]}, {"failed": ["3: the arm obeys"]}])
def test_a_wedged_station_and_a_failed_start_are_not_passed_over(bad: dict[str, Any]) -> None:
    assert verdict(result(seen()))[-1].endswith(" met.")
    assert verdict(result(seen(**bad)))[-1].endswith(" MISSED.")


def test_rounds_are_counted_by_what_the_fleet_got() -> None:
    rounds = [
        {"round": 1, "used": 1, "partial": 0, "seconds": 30.0},
        {"round": 2, "used": 1, "partial": 1, "seconds": 12.0},
        {"round": 3, "declined": {"busy": 1}, "seconds": 9.0},
        {"round": 4, "declined": {"error 5": 1}, "silent": 0, "seconds": 0.0},
    ]
    found = result(seen(rounds=rounds))["rounds"]
    assert (found["all"], found["with whole or partial work"], found["with partial work"]) == (4, 2, 1)
    assert found["declined"] == {"busy": 1, "5: had left": 1}
    assert found["seconds"]["max"] == 30.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_twice_ends_it_once(number: signal.Signals) -> None:
    """As `timeout` sends it; what was seen is told, and what was started is ended."""
    code = (
        "import os, time\n"
        "from benchmarks.interruption import ends_in_order\n"
        "ends_in_order()\n"
        "try:\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    time.sleep(0.05)\n"
        "    print('ended in order', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "ended in order\n"
    assert process.returncode == 0


def test_the_arm_obeys_when_it_is_sent_somewhere() -> None:
    ticks = [tick(1), tick(2, Drive.ALIGN), tick(3, Drive.ALIGN, sent=True), tick(4, Drive.FOLLOW, sent=True)]
    assert first_obeying(ticks) == ticks[2].read_ns
    assert first_obeying(ticks[:2]) is None


def test_a_tick_that_was_not_heard_is_no_interval() -> None:
    assert period_errors_ms([tick(1), tick(2, late_ms=0.5), tick(4, late_ms=3.0), tick(5)]) == [0.5, 3.0]
