"""One policy, run in five ways on the same virtual arm: this agent and lerobot's own loops, at one speed of inference.

    python -m benchmarks.tasks headline [--seconds 60] [--delay 0.3] [--repeats 3]
    python -m benchmarks.tasks queue [--seconds 20] [--delays 0.2 0.4 0.8 1.2 2.0]

The arm is told to touch a disc, which jumps to another place whenever it was touched. `headline` counts touches and
measures how fast a jump is seen; `queue` looks at what the arm was sent. Sides take turns. docs/benchmarks.md says how
to read the tables.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table as Drawn

from agent.errors import AgentError
from benchmarks.control_bench.host import end
from benchmarks.control_bench.rig import ROOT, BenchError
from benchmarks.control_bench.stats import percentile, timing
from benchmarks.task_bench.hand_over import publishing_s
from benchmarks.task_bench.lerobot_side import FPS, LerobotRun
from benchmarks.task_bench.shuttle import Shuttle, shuttle
from benchmarks.task_bench.smoothness import Smoothness, smoothness
from benchmarks.task_bench.station import Table, TaskStation

POLICY: Final = ROOT / "policies" / "demo-reach"
RESULTS: Final = ROOT / "benchmarks" / "results"
DISC: Final = "red disc"
TASK: Final = "touch the red disc"
DISCS: Final = ("red", "blue")
CUBES: Final = ("green",)
WARM_S: Final = 2.0
"""Left out at the beginning of every run: the first chunk of all sides is late."""

START_S: Final = 120.0
TRIES: Final = 4
"""Of one run. On a busy host the emulated servos answer late, and the agent then stops the arm, as it should."""

WIDTH: Final = 180
"""Of a table that goes into a file."""

CHUNK: Final = 50

OURS: Final = "so-agent"
OURS_SYNC: Final = "so-agent, synchronous"
OURS_ROLLED: Final = "so-agent, roll_forward"
SYNC: Final = "lerobot, synchronous"
RTC: Final = "lerobot, RTC engine"
ASYNC: Final = "lerobot, async client"
LEROBOT: Final = {SYNC: "sync", RTC: "rtc", ASYNC: "async"}
HEADLINE: Final = (OURS, OURS_ROLLED, OURS_SYNC, SYNC, RTC, ASYNC)
QUEUE: Final = (OURS, RTC, ASYNC)


@dataclass(frozen=True)
class Outcome:
    """One side, once. Durations in seconds where the name does not say otherwise."""

    side: str
    delay_s: float  # added to every prediction
    prediction_s: float  # with it
    shuttle: Shuttle
    starved: float  # share of ticks without an action
    smoothness: Smoothness | None = None  # None, as the next two: hardly a goal was written
    period_error_p99_ms: float | None = None
    rate_hz: float | None = None
    hand_over_p99_ms: float | None = None  # what an observation costs the control thread
    overhead_ms: float | None = None  # from an observation to its chunk, beyond the prediction itself


class Bench:
    """Runs sides on one virtual station."""

    def __init__(self, table: Table, policy: Path, say: Callable[[str], None]) -> None:
        self._table = table
        self._policy = policy
        self._say = say
        self._count = 0

    def one(self, side: str, delay_s: float, seconds: float, seed: int) -> Outcome:
        self._count += 1
        self._say(f"{self._count}. {side}, {delay_s:g} s a prediction")
        if side in LEROBOT:
            return self._lerobot(side, delay_s, seconds, seed)
        for _ in range(TRIES - 1):
            try:
                return self._agent(side, delay_s, seconds, seed)
            except AgentError as error:
                self._say(f"   once more: {error}")
                self._count += 1  # a state folder of its own
        return self._agent(side, delay_s, seconds, seed)

    def _agent(self, side: str, delay_s: float, seconds: float, seed: int) -> Outcome:
        policy_settings = {
            "extra_delay_s": delay_s,
            "synchronous": side == OURS_SYNC,
            "roll_forward": side == OURS_ROLLED,
            "starve_stop_s": 60.0,
        }
        with TaskStation(self._table, self._policy, f"run-{self._count}", policy=policy_settings) as station:
            station.start(TASK)
            time.sleep(WARM_S)
            begin_ns = time.monotonic_ns()
            done = shuttle(self._table, DISC, seconds, seed)
            end_ns = time.monotonic_ns()
            handed = publishing_s(self._table.rig.config.robot.realtime_priority)  # while everything still runs
            status = station.stop()
        policy, execution = status["policy"], status["policy"]["execution"]
        return self._outcome(
            side, delay_s, policy["inference_s"], done, begin_ns, end_ns,
            starved=execution["starved_ticks"] / max(1, execution["ticks"]),
            hand_over=handed,
            overhead_ms=(policy["delay_p50_s"] - policy["inference_s"]) * 1e3,
        )  # fmt: skip

    def _lerobot(self, side: str, delay_s: float, seconds: float, seed: int) -> Outcome:
        rig = self._table.rig
        run = LerobotRun(
            LEROBOT[side], str(rig.file), str(self._policy.resolve()), TASK, seconds + WARM_S + 1.0, delay_s
        )
        file = self._table.folder / f"run-{self._count}.json"
        file.write_text(json.dumps(asdict(run)))
        with (self._table.folder / f"run-{self._count}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.task_bench.lerobot_side", str(file)],
                stdout=subprocess.PIPE, stderr=log, cwd=ROOT,
            )  # fmt: skip
        try:
            assert process.stdout  # noqa: S101 - a pipe was asked for
            # lerobot prints lines of its own while it builds a policy.
            if not any(b"begun" in line for line in iter(process.stdout.readline, b"")):
                raise BenchError(f"{side} did not start:\n{Path(log.name).read_text()[-2000:]}")
            time.sleep(WARM_S)
            begin_ns = time.monotonic_ns()
            done = shuttle(self._table, DISC, seconds, seed)
            end_ns = time.monotonic_ns()
            out, _ = process.communicate(timeout=START_S)
        finally:
            end(process)
        told = json.loads(out.splitlines()[-1])
        sent = [at for at in told["sent"] if begin_ns <= at * 1e9 <= end_ns]
        inferred = statistics.median(told["inferred"]) if told["inferred"] else 0.0
        return self._outcome(
            side, delay_s, inferred, done, begin_ns, end_ns,
            starved=max(0.0, 1 - len(sent) / ((end_ns - begin_ns) / 1e9 * FPS)),
            hand_over=told["handed"],
            overhead_ms=(statistics.median(told["reacted"]) - inferred) * 1e3 if told["reacted"] else None,
        )  # fmt: skip

    def _outcome(
        self,
        side: str,
        delay_s: float,
        prediction_s: float,
        done: Shuttle,
        begin_ns: int,
        end_ns: int,
        *,
        starved: float,
        hand_over: Sequence[float],
        overhead_ms: float | None,
    ) -> Outcome:
        handed_ms = percentile(hand_over, 99) * 1e3 if hand_over else None
        at_ns, goals = self._wire(begin_ns, end_ns)
        if len(at_ns) < FPS:  # lerobot's RTC engine takes an action no more once its chunks come too late
            return Outcome(
                side, delay_s, prediction_s, done, starved, hand_over_p99_ms=handed_ms, overhead_ms=overhead_ms
            )
        times, smooth = timing(at_ns, FPS), smoothness(at_ns, goals, FPS)
        return Outcome(
            side, delay_s, prediction_s, done, starved,
            smooth, times.error_p99_ms, times.rate_hz, handed_ms, overhead_ms,
        )  # fmt: skip

    def _wire(self, begin_ns: int, end_ns: int) -> tuple[list[int], Any]:
        """When goals were written, and the goals of the five body joints in counts."""
        packets: dict[int, dict[int, float]] = {}
        with self._table.rig.wire_log.open() as log:
            for line in log:
                if not line.endswith("\n"):
                    break
                row = json.loads(line)
                if row["arm"] == "follower" and begin_ns <= row["ns"] <= end_ns:
                    packets.setdefault(row["ns"], {})[row["id"]] = row["goal"]
        whole = {at: row for at, row in sorted(packets.items()) if len(row) == 6}
        return list(whole), np.array([[row[joint] for joint in range(1, 6)] for row in whole.values()], float)


def floor(prediction_s: float) -> float:
    """Starvation that nobody who predicts one chunk after the other can avoid at this rate."""
    return max(0.0, 1 - (CHUNK / 2) / (prediction_s * FPS)) if prediction_s else 0.0


def headline_table(outcomes: dict[str, list[Outcome]], asked: argparse.Namespace) -> Drawn:
    drawn = Drawn(title=f"Medians of {asked.repeats} x {asked.seconds:g} s, {asked.delay:g} s a prediction")
    drawn.add_column("")
    for name in outcomes:
        drawn.add_column(name, justify="right")
    rows: list[tuple[str, Callable[[Outcome], float | None], str]] = [
        ("touches a minute", lambda one: len(one.shuttle.touched_after) / one.shuttle.seconds * 60, "{:.1f}"),
        ("time a touch, s", lambda one: _median(one.shuttle.touched_after), "{:.2f}"),
        ("places that were touched", lambda one: one.shuttle.success, "{:.0%}"),
        ("reaction to a jump, s", lambda one: _median(one.shuttle.reacted_after), "{:.2f}"),
        ("starved ticks", lambda one: one.starved, "{:.1%}"),
        ("period error p99, ms", lambda one: one.period_error_p99_ms, "{:.1f}"),
        ("jerk rms, deg/s3", lambda one: one.smoothness.jerk_rms if one.smoothness else None, "{:.0f}"),
    ]
    for name, value, form in rows:
        cells = []
        for runs in outcomes.values():
            values = [found for one in runs if (found := value(one)) is not None]
            cells.append(form.format(statistics.median(values)) if values else "-")
        drawn.add_row(name, *cells)
    return drawn


def queue_table(outcomes: dict[tuple[float, str], Outcome]) -> Drawn:
    drawn = Drawn(title="What the arm was sent")
    columns = (
        "added", "prediction", "side", "starved", "floor", "period error p99", "rate", "hand-over p99", "overhead",
        "largest step change", "rms", "jerk rms",
    )  # fmt: skip
    for name in columns:
        drawn.add_column(name, justify="left" if name == "side" else "right")
    for (delay_s, side), one in outcomes.items():
        smooth = one.smoothness
        drawn.add_row(
            f"{delay_s:g} s",
            f"{one.prediction_s:.2f} s",
            side,
            f"{one.starved:.1%}",
            f"{floor(one.prediction_s):.1%}",
            _cell(one.period_error_p99_ms, "{:.1f} ms"),
            _cell(one.rate_hz, "{:.2f} Hz"),
            _cell(one.hand_over_p99_ms, "{:.2f} ms"),
            _cell(one.overhead_ms, "{:.0f} ms"),
            _cell(smooth and smooth.step_change_max_deg, "{:.2f} deg"),
            _cell(smooth and smooth.step_change_rms_deg, "{:.2f} deg"),
            _cell(smooth and smooth.jerk_rms, "{:.0f}"),
        )
    return drawn


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def headline(bench: Bench, asked: argparse.Namespace) -> tuple[Drawn, list[Outcome]]:
    outcomes: dict[str, list[Outcome]] = {side: [] for side in HEADLINE}
    for repeat in range(asked.repeats):
        for side in HEADLINE:
            outcomes[side].append(bench.one(side, asked.delay, asked.seconds, asked.seed + 1000 * repeat))
    return headline_table(outcomes, asked), [one for runs in outcomes.values() for one in runs]


def queue(bench: Bench, asked: argparse.Namespace) -> tuple[Drawn, list[Outcome]]:
    outcomes = {
        (delay_s, side): bench.one(side, delay_s, asked.seconds, asked.seed)
        for delay_s in asked.delays
        for side in QUEUE
    }
    return queue_table(outcomes), list(outcomes.values())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tasks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", type=Path, default=POLICY, help="folder of a bundle")
    parser.add_argument("--seed", type=int, default=2_000_000, help="of the places that the disc jumps to")
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("headline", help="touches a minute at one inference time")
    one.add_argument("--seconds", type=float, default=60.0)
    one.add_argument("--repeats", type=int, default=3)
    one.add_argument("--delay", type=float, default=0.3, help="seconds added to every prediction")
    many = kinds.add_parser("queue", help="starvation and smoothness at several inference times")
    many.add_argument("--seconds", type=float, default=20.0)
    many.add_argument("--delays", type=float, nargs="+", default=[0.2, 0.4, 0.8, 1.2, 2.0])
    asked = parser.parse_args(argv)
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="so-", dir="/tmp") as folder,  # socket paths must be short
        Table(Path(folder), DISCS, CUBES) as table,
    ):
        bench = Bench(table, asked.policy, console.print)
        drawn, outcomes = {"headline": headline, "queue": queue}[asked.kind](bench, asked)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(drawn)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"tasks-{asked.kind}.json").write_text(json.dumps([asdict(one) for one in outcomes], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
