"""What the benchmark of an open page concludes from its runs."""

import pytest
from rich.console import Console

from benchmarks.surfaces import ALONE, WATCHED, aim_met, parse, show


def a_run(p99_ms: float, repeated_pct: float = 0.0, own_ms: float = 0.1) -> dict[str, object]:
    timing = {"error_p50_ms": 0.1, "error_p99_ms": p99_ms, "error_max_ms": 1.0, "late": 0, "rate_hz": 30.0}
    return {"timing": timing, "own_p99_ms": own_ms, "repeated_pct": repeated_pct, "cores": 0.4, "surface_cores": 0.1}


@pytest.mark.parametrize(
    ("alone", "watched", "met"),
    [
        ([1.0, 1.0], [1.05, 1.05], True),  # within 10 %
        ([1.0, 1.0], [1.2, 1.2], False),
        ([1.0, 1.5], [1.4, 1.45], True),  # no more than unwatched runs differ among themselves
        ([1.0, 1.5], [1.6, 1.6], False),
    ],
)
def test_the_aim_is_ten_percent_or_what_runs_differ_by_anyway(
    alone: list[float], watched: list[float], met: bool
) -> None:
    runs = {ALONE: [a_run(each) for each in alone], WATCHED: [a_run(each) for each in watched]}
    assert aim_met(runs) is met
    assert show(runs, Console(quiet=True)) is met


def test_repeated_frames_count_as_much() -> None:
    runs = {ALONE: [a_run(1.0, 0.1)], WATCHED: [a_run(1.0, 0.5)]}
    assert not aim_met(runs)


def test_the_loops_own_account_counts_as_much() -> None:
    runs = {ALONE: [a_run(1.0, own_ms=0.1)], WATCHED: [a_run(1.0, own_ms=0.2)]}
    assert not aim_met(runs)


def test_quick_is_short() -> None:
    assert (parse(["--quick"]).repeats, parse(["--quick"]).seconds) == (2, 8.0)
