"""What the demo policy achieves, through everything that a real arm would have but the arm.

    python -m benchmarks.evaluate [--starts 100] [--controls 30] [--policy policies/demo-reach]

Virtual station, lerobot's driver, cameras, policy process, chunk queue, safety filter. Every start is a table and a
pose that recording never had. A success: at the end the fingertip is within 2 cm of the middle of the disc that the
task names. The controls take something away that the policy should need, and it should fail.
"""

import argparse
import json
import math
import statistics
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
from benchmarks.control_bench.rig import ROOT
from benchmarks.task_bench.station import Table, TaskStation
from experiments.demo_policy.plan import FIRST_UNSEEN, EpisodePlan, Planner
from experiments.demo_policy.recipe import CUBES, DISCS, NEAR_M, task_text

RESULTS: Final = ROOT / "benchmarks" / "results" / "evaluate.json"
POLICY: Final = ROOT / "policies" / "demo-reach"
TASK_S: Final = 6.0
"""A demonstrated touch takes 1 to 3 s; the policy may correct itself."""

CONFIDENCE_Z: Final = 1.96  # 95%
TRIES: Final = 4
"""Of one start. On a busy host the emulated servos answer late, and the agent then stops the arm, as it should."""

AWAY: Final = (-0.6, 0.0)  # behind the arm, out of sight and reach
CONTROLS: Final = ("grey images", "named disc hidden", "other disc named")


@dataclass(frozen=True)
class Start:
    """How one start ended."""

    number: int
    named: str
    miss_m: float
    touched: str | None  # the disc that the fingertip is at
    starved: float  # share of ticks
    delay_s: float | None

    @property
    def success(self) -> bool:
        return self.touched == self.named


def interval(successes: int, of: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927), which stays sensible at 0 and at 1."""
    if not of:
        return 0.0, 1.0
    z, share = CONFIDENCE_Z, successes / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)


class Evaluation:
    """Runs starts on one station."""

    def __init__(self, station: TaskStation) -> None:
        self._station = station
        self._table = station.table
        self._planner = Planner(station.table.scene)
        self.interrupted = 0  # starts that were begun again

    def one(self, number: int, control: str | None) -> Start:
        """Raises AgentError when the task could not be carried out to its end, several times over."""
        for _ in range(TRIES - 1):
            try:
                return self._once(number, control)
            except AgentError:
                self.interrupted += 1
        return self._once(number, control)

    def _once(self, number: int, control: str | None) -> Start:
        plan = self._planner.plan(FIRST_UNSEEN + number)
        self._prepare(plan, number)
        table = self._table
        other = next(f"{disc} disc" for disc in DISCS if f"{disc} disc" != plan.disc)
        places = table.look()[1]
        if control == "named disc hidden":
            table.place({plan.disc: AWAY})
        if control == "grey images":
            table.inject(camera={"fault": "grey"})
        try:
            status = self._station.carry_out(task_text(other if control == "other disc named" else plan.disc), TASK_S)
        finally:
            table.inject(camera={"fault": "none"})
        tip, objects = table.look()
        objects = {**objects, plan.disc: places[plan.disc]}  # where it was, if it was hidden
        misses = {f"{disc} disc": float(np.linalg.norm(np.subtract(tip, objects[f"{disc} disc"]))) for disc in DISCS}
        touched = min(misses, key=lambda disc: misses[disc])
        execution, delay_s = status["policy"]["execution"], status["policy"]["delay_p95_s"]
        return Start(
            number,
            plan.disc,
            misses[plan.disc],
            touched if misses[touched] <= NEAR_M else None,
            execution["starved_ticks"] / max(1, execution["ticks"]),
            delay_s,
        )

    def _prepare(self, plan: EpisodePlan, number: int) -> None:
        pose = plan.start or self._planner.somewhere(np.random.default_rng(number))
        self._station.lead_to(pose)
        self._table.lay(plan.scene_seed)


def table(results: dict[str, Sequence[Start]], policy: str) -> Drawn:
    drawn = Drawn(title=f"{policy}: within 2 cm of the named disc after {TASK_S:g} s", title_justify="left")
    drawn.add_column("condition")
    for name in (
        "success",
        "95% interval",
        "at the other disc",
        "median miss",
        "p90 miss",
        "starved ticks",
        "delay p95",
    ):
        drawn.add_column(name, justify="right")
    for condition, starts in results.items():
        hits, count = sum(start.success for start in starts), len(starts)
        low, high = interval(hits, count)
        misses = sorted(start.miss_m * 100 for start in starts)
        delays = [start.delay_s for start in starts if start.delay_s is not None]
        drawn.add_row(
            condition,
            f"{hits} of {count}",
            f"{low:.0%} to {high:.0%}",
            f"{sum(start.touched not in (None, start.named) for start in starts)} of {count}",
            f"{statistics.median(misses):.1f} cm",
            f"{misses[min(count - 1, int(0.9 * count))]:.1f} cm",
            f"{statistics.mean(start.starved for start in starts):.1%}",
            f"{statistics.median(delays) * 1e3:.0f} ms" if delays else "-",
        )
    return drawn


def run(asked: argparse.Namespace, say: Callable[[str], None]) -> tuple[dict[str, list[Start]], int]:
    """All conditions on one station, and how many starts were begun again because the host was too busy."""
    results: dict[str, list[Start]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="so-", dir="/tmp") as folder,  # socket paths must be short
        Table(Path(folder), DISCS, CUBES) as laid,
        TaskStation(laid, asked.policy) as station,
    ):
        evaluation = Evaluation(station)
        for condition, count in (("as trained", asked.starts), *((name, asked.controls) for name in CONTROLS)):
            results[condition] = []
            begun = time.monotonic()
            for number in range(count):
                start = evaluation.one(number, None if condition == "as trained" else condition)
                results[condition].append(start)
                hits = sum(each.success for each in results[condition])
                say(
                    f"{condition}: {number + 1} of {count}, {hits} at the named disc "
                    f"({start.miss_m * 100:.1f} cm), {time.monotonic() - begun:.0f} s"
                )
    return results, evaluation.interrupted


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", type=Path, default=POLICY, help="folder of a bundle")
    parser.add_argument("--starts", type=int, default=100, help="unseen starts as trained")
    parser.add_argument("--controls", type=int, default=30, help="unseen starts of each control")
    asked = parser.parse_args(argv)
    console = Console(stderr=True)
    with console.status("Starting the station") as shown:
        results, interrupted = run(asked, shown.update)
    Console().print(table({name: starts for name, starts in results.items() if starts}, asked.policy.name))
    if interrupted:
        console.print(f"{interrupted} starts were begun again: servos answered late. Run it on a machine that is idle.")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(_plain(results), indent=1))
    return 0


def _plain(results: dict[str, list[Start]]) -> dict[str, Any]:
    return {condition: [asdict(start) for start in starts] for condition, starts in results.items()}


if __name__ == "__main__":
    sys.exit(main())
