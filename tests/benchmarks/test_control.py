"""The pure parts of the control benchmark: what it computes, and what it says about it."""

import os
from typing import Any

import pytest

from benchmarks import control
from benchmarks.control_bench import report
from benchmarks.control_bench.host import children_of, cpu_between, cpu_s, resident_mb
from benchmarks.control_bench.report import AGENT, LEROBOT, NORMAL, Run
from benchmarks.control_bench.rig import BenchError, wait_for
from benchmarks.control_bench.stats import Spread, percentile, timing

PERIOD_NS = 10_000_000


def test_a_perfect_loop_has_no_error_and_the_exact_rate() -> None:
    found = timing([number * PERIOD_NS for number in range(101)], 100)

    assert found.rate_hz == pytest.approx(100)
    assert (found.error_p50_ms, found.error_p99_ms, found.error_max_ms, found.late) == (0, 0, 0, 0)


def test_one_late_cycle_shows_in_max_and_count_but_not_in_the_median() -> None:
    times = [number * PERIOD_NS for number in range(50)]
    times += [times[-1] + 17_000_000 + number * PERIOD_NS for number in range(50)]

    found = timing(times, 100)

    assert found.late == 1
    assert found.error_max_ms == pytest.approx(7)
    assert found.error_p50_ms == 0


def test_a_loop_that_drifts_is_off_in_rate_although_every_period_is_alike() -> None:
    found = timing([number * 10_100_000 for number in range(101)], 100)

    assert found.rate_deviation_pct == pytest.approx(0.99, abs=0.01)
    assert found.error_p99_ms == pytest.approx(0.1)


def test_timing_of_a_loop_that_never_ran_is_refused() -> None:
    with pytest.raises(ValueError, match="two moments"):
        timing([1], 30)


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0, 1)])
def test_a_percentile_is_a_measured_value(percent: float, expected: float) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_a_spread_is_median_and_range() -> None:
    assert Spread.of([3.0, 1.0, 9.0]) == Spread(3.0, 1.0, 9.0)
    assert Spread.of([]) is None


def make_run(p99_ms: float, cpu_s: float = 10.0, readable_s: float = 0.2, frames: int = 600, **more: Any) -> Run:
    times = [number * 33_333_333 for number in range(600)]
    return {
        "timing": timing(times, 30).__dict__ | {"error_p99_ms": p99_ms},
        "own_p99_ms": p99_ms,
        "begin_ns": 0,
        "stop_ns": 20_000_000_000,
        "readable_ns": 20_000_000_000 + round(readable_s * 1e9),
        "cpu_recording_s": cpu_s,
        "cpu_saving_s": 1.0,
        "repeats": {"front": 1, "wrist": 2},
        "seen": {"rows": 600, "frames": {"front": frames, "wrist": 600}, "bytes": {"front": 1, "wrist": 1}},
        **more,
    }


STARTED = {"socket_s": 0.5, "arm_s": 6.0, "arm_back_s": 0.4, "daemon_mb": 60.0}


def verdicts(sides: dict[str, list[Run]], four: Run | None = None) -> dict[str, bool | None]:
    return {aim.name: aim.met for aim in report.aims(sides, four)}


def test_aims_are_judged_on_the_median_of_the_runs() -> None:
    sides = {
        LEROBOT: [make_run(5.0, cpu_s=20.0) for _ in range(3)],
        AGENT: [make_run(p99, **STARTED) for p99 in (0.1, 0.4, 9.0)],
        NORMAL: [make_run(6.0, **STARTED)],
    }

    found = verdicts(sides, make_run(0.1))

    assert found["period error p99, lerobot / so-agent with SCHED_FIFO"] is True
    assert found["the same without SCHED_FIFO"] is False
    assert found["CPU while recording, so-agent / lerobot"] is True
    assert found["stop to readable, s"] is True
    assert found["pictures missing with four cameras at 30 fps"] is True
    assert found["daemon's memory, MB"] is True


def test_an_aim_that_was_not_measured_is_neither_met_nor_missed() -> None:
    found = verdicts({LEROBOT: [make_run(5.0)], AGENT: [], NORMAL: []})

    assert set(found.values()) == {None}


def test_a_picture_that_is_missing_in_a_video_is_a_miss() -> None:
    found = verdicts({}, make_run(0.1, frames=599))

    assert found["pictures missing with four cameras at 30 fps"] is False


def test_the_table_shows_median_range_and_ratio() -> None:
    sides = {LEROBOT: [make_run(4.0), make_run(6.0), make_run(5.0)], AGENT: [make_run(0.5)], NORMAL: []}

    lines = report.comparison(sides)

    assert lines[0] == ["", LEROBOT, AGENT, "lerobot / so-agent"]
    assert ["period error p99, ms", "5.000 (4.000 to 6.000)", "0.500", "10.00"] in lines


def test_markdown_is_a_table() -> None:
    assert report.markdown([["aim", "limit"], ["a", "b"]]) == "| aim | limit |\n| --- | ---: |\n| a | b |\n"


def test_the_kernel_is_asked_about_processes() -> None:
    before = cpu_s([os.getpid()])

    assert os.getpid() in children_of(os.getpid())
    assert cpu_between(before, {os.getpid(): before[os.getpid()] + 1.5, 0: 0.5}) == pytest.approx(2.0)
    assert resident_mb(os.getpid()) > 1


def test_waiting_for_what_never_comes_says_what_it_was() -> None:
    with pytest.raises(BenchError, match="the arm"):
        wait_for("the arm", lambda: None, timeout_s=0.01, poll_s=0.001)


def test_quick_is_one_short_run_of_every_side() -> None:
    asked = control.parse(["--quick"])

    assert (asked.repeats, asked.seconds) == (1, 8.0)


@pytest.mark.parametrize("wrong", [["--repeats", "0"], ["--seconds", "1"]])
def test_a_run_that_measures_nothing_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        control.parse(wrong)
