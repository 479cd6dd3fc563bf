"""From measured runs to the table that people read: medians, ratios, aims met or missed. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.control_bench.stats import Spread

type Run = dict[str, Any]
"""One recorded episode: `timing` (a `Timing` as a dict), `seen` (see `verify`), and what its side measured."""

LEROBOT: Final = "lerobot"
AGENT: Final = "so-agent, SCHED_FIFO"
NORMAL: Final = "so-agent, normal"
SIDES: Final = (LEROBOT, AGENT, NORMAL)


@dataclass(frozen=True)
class Metric:
    """One line of the comparison. `of` may raise KeyError where a side does not have it."""

    name: str
    of: Callable[[Run], float]
    digits: int = 2


def _timing(key: str) -> Callable[[Run], float]:
    return lambda run: float(run["timing"][key])


def _sum(key: str) -> Callable[[Run], float]:
    return lambda run: float(sum(run[key].values()))


def stop_to_readable_s(run: Run) -> float:
    return float(run["readable_ns"] - run["stop_ns"]) / 1e9


def cpu(run: Run) -> float:
    """Cores in use while recording."""
    return float(run["cpu_recording_s"]) / recorded_s(run)


def cpu_with_saving(run: Run) -> float:
    """The same, with what was put off until the episode is saved."""
    return float(run["cpu_recording_s"] + run["cpu_saving_s"]) / recorded_s(run)


def recorded_s(run: Run) -> float:
    return float(run["stop_ns"] - run["begin_ns"]) / 1e9


def dropped(run: Run) -> float:
    """Rows without a picture of their own in the video, summed over the cameras."""
    seen = run["seen"]
    return float(sum(max(0, seen["rows"] - frames) for frames in seen["frames"].values()))


def megabytes_a_minute(run: Run) -> float:
    return float(sum(run["seen"]["bytes"].values())) / 1e6 / recorded_s(run) * 60


METRICS: Final = (
    Metric("period error p50, ms", _timing("error_p50_ms"), 3),
    Metric("period error p99, ms", _timing("error_p99_ms"), 3),
    Metric("period error max, ms", _timing("error_max_ms"), 2),
    Metric("the loop's own account of p99, ms", lambda run: float(run["own_p99_ms"]), 3),
    Metric("mean rate, Hz", _timing("rate_hz"), 4),
    Metric("mean rate off by, %", _timing("rate_deviation_pct"), 4),
    Metric("late cycles (> 1.5 periods)", _timing("late"), 0),
    Metric("CPU while recording, cores", cpu),
    Metric("CPU with saving, cores", cpu_with_saving),
    Metric("stop to readable, s", stop_to_readable_s, 3),
    Metric("rows", lambda run: float(run["seen"]["rows"]), 0),
    Metric("pictures missing in the videos", dropped, 0),
    Metric("pictures repeated, all cameras", _sum("repeats"), 0),
    Metric("videos, MB a minute", megabytes_a_minute, 1),
)


def spread(runs: Sequence[Run], of: Callable[[Run], float]) -> Spread | None:
    """Over the runs that have the value."""
    values = []
    for run in runs:
        try:
            values.append(of(run))
        except KeyError:
            continue
    return Spread.of(values)


@dataclass(frozen=True)
class Aim:
    """Something this agent promises, and what came out. `value` None: not measured."""

    name: str
    limit: str
    value: float | None
    met: bool | None
    detail: str = ""


def aims(sides: dict[str, list[Run]], four: Run | None) -> list[Aim]:
    """Every aim, judged on medians."""

    def median(side: str, of: Callable[[Run], float]) -> float | None:
        found = spread(sides.get(side, []), of)
        return found.median if found else None

    def ratio(above: float | None, below: float | None) -> float | None:
        return above / below if above is not None and below else None

    p99 = _timing("error_p99_ms")
    both = [*sides.get(AGENT, []), *sides.get(NORMAL, [])]

    def start(key: str) -> float | None:
        found = spread(both, lambda run: float(run[key]))
        return found.median if found else None

    fifo, normal = ratio(median(LEROBOT, p99), median(AGENT, p99)), ratio(median(LEROBOT, p99), median(NORMAL, p99))
    four_dropped = dropped(four) if four else None
    four_detail = (
        f"{four['seen']['rows']} rows; repeated {four['repeats']}; {cpu(four):.2f} cores" if four else "not measured"
    )
    return [
        _at_least("period error p99, lerobot / so-agent with SCHED_FIFO", fifo, 10),
        _at_least("the same without SCHED_FIFO", normal, 1),
        _at_most("mean rate off by, %", median(AGENT, _timing("rate_deviation_pct")), 0.01),
        _at_most("CPU while recording, so-agent / lerobot", ratio(median(AGENT, cpu), median(LEROBOT, cpu)), 0.7),
        _at_most("stop to readable, s", median(AGENT, stop_to_readable_s), 0.3),
        _at_most("pictures missing with four cameras at 30 fps", four_dropped, 0, four_detail),
        _at_most("socket answers after, s", start("socket_s"), 1),
        _at_most("arm under control after, s", start("arm_s"), 10),
        _at_most("arm back after SIGKILL of its process, s", start("arm_back_s"), 1.5),
        _at_most("daemon's memory, MB", start("daemon_mb"), 120),
    ]


def _at_most(name: str, value: float | None, limit: float, detail: str = "") -> Aim:
    return Aim(name, f"<= {limit:g}", value, None if value is None else value <= limit, detail)


def _at_least(name: str, value: float | None, limit: float, detail: str = "") -> Aim:
    return Aim(name, f">= {limit:g}", value, None if value is None else value >= limit, detail)


def comparison(sides: dict[str, list[Run]]) -> list[list[str]]:
    """Header and lines: metric, one column a side as `median (lowest to highest)`, and lerobot / so-agent."""
    names = [name for name in sides if sides[name]]
    compared = LEROBOT in names and AGENT in names
    lines = [["", *names, *(["lerobot / so-agent"] if compared else [])]]
    for metric in METRICS:
        cells = {name: spread(sides[name], metric.of) for name in names}
        theirs, ours = cells.get(LEROBOT), cells.get(AGENT)
        times = f"{theirs.median / ours.median:.2f}" if theirs and ours and ours.median else ""
        lines.append(
            [metric.name, *(_cell(cells[name], metric.digits) for name in names), *([times] if compared else [])]
        )
    return lines


def _cell(value: Spread | None, digits: int) -> str:
    if value is None:
        return ""
    text = f"{value.median:.{digits}f}"
    return text if value.low == value.high else f"{text} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def judgement(found: Sequence[Aim]) -> list[list[str]]:
    lines = [["aim", "limit", "measured", ""]]
    words = {True: "met", False: "MISSED", None: "not measured"}
    for aim in found:
        value = "" if aim.value is None else f"{aim.value:.3g}"
        lines.append([aim.name, aim.limit, f"{value} ({aim.detail})" if aim.detail else value, words[aim.met]])
    return lines


def show(console: Console, title: str, lines: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(lines[0]):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for line in lines[1:]:
        table.add_row(*line, style="red" if line[-1] == "MISSED" else None)
    console.print(table)


def markdown(lines: list[list[str]]) -> str:
    """A table in Markdown."""
    head, *body = lines
    rule = ["---", *(["---:"] * (len(head) - 1))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body)) + "\n"
