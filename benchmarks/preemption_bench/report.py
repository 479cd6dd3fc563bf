"""What the starts of teleoperation and the fleet's rounds add up to. Nothing here needs a station."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.control_bench.stats import percentile

SOON_MS: Final = 100.0
"""The aim: later than the median of a station that takes no part by no more than this."""

STEADY: Final = 1.10
"""The aim: p99 of the period error while training, as a multiple of that without; each the median of its windows, since
whatever else the machine does for a second is in one of them."""

WEDGED_S: Final = 120.0
"""A station that does not learn again within this time is wedged."""

KEYS: Final = ("p50", "p99", "max", "count")

ERRORS: Final = {"error 3": "3: the message was too old", "error 4": "4: no reply in time", "error 5": "5: had left"}
"""Flower's, as the server saw them; a station that had left before it began is the most frequent."""


@dataclass(frozen=True)
class Start:
    """One start of teleoperation."""

    state: str  # of the node, when it was asked for
    doing: str
    first_tick_ms: float
    answered_ms: float  # until the request was answered
    off_s: float | None = None  # until the SuperNode was gone


@dataclass
class Findings:
    """All that was seen so far: a run that is cut short has something to say, too."""

    idle: list[Start] = field(default_factory=list)
    wanted: list[Start] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # starts that did not go as they should
    idle_errors_ms: list[list[float]] = field(default_factory=list)  # one list a window, before and after
    training_errors_ms: list[list[float]] = field(default_factory=list)
    at_steps_errors_ms: list[list[float]] = field(default_factory=list)  # shorter: until the arm was wanted
    learns_after_s: list[float] = field(default_factory=list)  # from when it might again to its first step
    rounds: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    ended: str = ""  # why before its time


def result(found: Findings) -> dict[str, Any]:
    """JSON."""
    rounds = found.rounds
    declined = sum((Counter(each.get("declined") or {}) for each in rounds), Counter[str]())
    idle, wanted = ([each.first_tick_ms for each in side] for side in (found.idle, found.wanted))
    return {
        "ended_early": found.ended or None,
        "first_tick_ms": {"idle": summary(idle), "training": summary(wanted)},
        "later_than_aim": sum(each > statistics.median(idle) + SOON_MS for each in wanted) if idle else None,
        "answered_ms": {
            "idle": summary([each.answered_ms for each in found.idle]),
            "training": summary([each.answered_ms for each in found.wanted]),
        },
        "period_error_ms": {
            "idle": summary([*chain(*found.idle_errors_ms)]),
            "training": summary([*chain(*found.training_errors_ms, *found.at_steps_errors_ms)]),
        },
        "period_error_p99_of_windows_ms": {
            "idle": [round(percentile(each, 99), 3) for each in found.idle_errors_ms if each],
            "training": [round(percentile(each, 99), 3) for each in found.training_errors_ms if each],
        },
        "gone_after_s": summary([each.off_s for each in found.wanted if each.off_s is not None]),
        "learns_again_after_s": summary(found.learns_after_s),
        "moments": dict(Counter(each.doing or each.state for each in found.wanted)),
        "failed": found.failed,
        "rounds": {
            "all": len(rounds),
            "with whole or partial work": sum(each.get("used", 0) > 0 for each in rounds),
            "with partial work": sum(each.get("partial", 0) > 0 for each in rounds),
            "declined": {ERRORS.get(reason, reason): count for reason, count in declined.items()},
            "without a reply": sum(each.get("silent", 0) > 0 for each in rounds),
            "with a broken reply": sum(each.get("broken", 0) > 0 for each in rounds),
            "seconds": summary([each["seconds"] for each in rounds if each.get("seconds")]),
        },
        "wedged": sum(each > WEDGED_S for each in found.learns_after_s),
        "minutes": round(found.seconds / 60, 1),
        "starts": [asdict(each) for each in found.wanted],
    }


def summary(values: Sequence[float]) -> dict[str, float] | None:
    """None of nothing."""
    if not values:
        return None
    return {
        "p50": round(statistics.median(values), 3),
        "p99": round(percentile(values, 99), 3),
        "max": round(max(values), 3),
        "count": len(values),
    }


def show(result: dict[str, Any], console: Console) -> None:
    table = Table("", "takes no part: p50", "p99", "max", "n", "trains: p50", "p99", "max", "n", box=None)
    for name, title in (
        ("first_tick_ms", "first tick, ms"),
        ("answered_ms", "answer, ms"),
        ("period_error_ms", "period error, ms"),
    ):
        cells = [_cell(side, key) for side in (result[name]["idle"], result[name]["training"]) for key in KEYS]
        table.add_row(title, *cells)
    console.print(table)
    for name in (
        "period_error_p99_of_windows_ms", "gone_after_s", "learns_again_after_s", "moments", "rounds", "failed",
        "wedged", "minutes",
    ):  # fmt: skip
        console.print(f"{name.replace('_', ' ')}: {result[name]}", markup=False)
    for sentence in verdict(result):
        console.print(sentence, markup=False)
    if result["ended_early"]:
        console.print(f"[red]Ended early: {escape(result['ended_early'])}[/red]")


def verdict(result: dict[str, Any]) -> list[str]:
    """Sentences about the aims; none about what was not measured."""
    found = []
    ticks, windows = result["first_tick_ms"], result["period_error_p99_of_windows_ms"]
    if ticks["idle"] and ticks["training"]:
        late, count = result["later_than_aim"], ticks["training"]["count"]
        found.append(
            f"First tick within {SOON_MS:g} ms of the idle median: {count - late} of {count}: {_met(late == 0)}."
        )
    if windows["idle"] and windows["training"]:
        ratio = statistics.median(windows["training"]) / statistics.median(windows["idle"])
        found.append(f"Period error p99 while training: {ratio:.2f} of idle, aim {STEADY}: {_met(ratio <= STEADY)}.")
    if ticks["training"]:
        bad = len(result["failed"]) + result["wedged"]
        found.append(f"No start failed, no station was wedged: {_met(bad == 0)}.")
    return found


def _met(is_so: bool) -> str:
    return "met" if is_so else "MISSED"


def _cell(side: dict[str, float] | None, key: str) -> str:
    if side is None:
        return "-"
    return str(side[key]) if key == "count" else f"{side[key]:.2f}"
