"""How long an operator waits for an arm whose computer is training, and what that does to the fleet's rounds.

    python -m benchmarks.preemption [--times 50] [--baseline 12] [--seed 0] [--quick]

One virtual station is alone in its fleet and learns without end, round after round: the demo policy, on drawn episodes.
At random moments teleoperation is started, wherever the station is just then: joining, waiting, loading, at a step, or
sending its reply. Two of three moments lie within 14 s of joining, the third within 5 s of a step, because on a small
computer nothing is learnt before then. Measured is the time from the request to the first tick in which the arm obeys,
beside that of the same station while it takes no part; the regularity of the control loop in both; and what each round
of the fleet got. A station is wedged when it does not learn again, within two minutes, after the last of them.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from agent.errors import AgentError
from agent.fl import fleet_runs
from agent.fl.fleet import Fleet
from agent.fl.fleet_control import Control
from agent.fl.fleet_report import rounds
from agent.fl.synthetic import drawn
from agent.messages import ArmReport, Drive, Tick
from agent.transport import Subscriber
from benchmarks.control_bench.agent_side import Daemon, ready
from benchmarks.control_bench.host import end
from benchmarks.control_bench.rig import ROOT, BenchError, Rig, free_ports, wait_for
from benchmarks.control_bench.stats import percentile

RESULTS: Final = ROOT / "benchmarks" / "results" / "preemption.json"
POLICY: Final = ROOT / "policies" / "demo-reach"
RUN: Final = "endless"
DATASET: Final = "drawn"

SETTINGS: Final = {
    "policy": POLICY.name,
    "num-server-rounds": 10_000,
    "local-steps": 200,
    "batch-size": 4,
    "fraction-evaluate": 0.0,
    "min-available-nodes": 1,
    "node-timeout-s": 3600.0,
    "round-timeout-s": 300.0,
    "max-empty-rounds": 1000,
}
OBEYS: Final = (Drive.ALIGN, Drive.FOLLOW)
USED_S: Final = 3.0
"""How long an operator keeps the arm at least: longer than the trainer stands still, so that it goes on beside it."""

WINDOW_S: Final = 30.0
"""Of the control loop, for its regularity."""

EARLY_S: Final = (0.0, 14.0)
"""After the station may join again."""

AT_STEPS_S: Final = (0.0, 5.0)
"""After a step was seen."""

STEPS_EVERY: Final = 3
QUICK: Final = (6, 5, 10.0)  # times, baseline, window

TWO_MINUTES_S: Final = 120.0


@dataclass(frozen=True)
class Start:
    """One start of teleoperation."""

    state: str  # of the node, when it was asked for
    doing: str
    first_tick_ms: float
    answered_ms: float  # until the request was answered
    off_s: float | None = None  # until the SuperNode was gone


class Ticks:
    """Listens to the arm in a thread of its own, so that nothing here delays a time stamp: those are the arm's."""

    def __init__(self, path: Path) -> None:
        self._subscriber = Subscriber(path)
        self._decoder = msgspec.msgpack.Decoder(Tick | ArmReport)
        self._ticks: deque[Tick] = deque(maxlen=20_000)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            if parts := self._subscriber.receive(0.2):
                message = self._decoder.decode(parts[0].buffer)
                if isinstance(message, Tick):
                    self._ticks.append(message)

    def first_obeying_ns(self, after_ns: int, timeout_s: float = 10.0) -> int:
        """When the first tick after a moment sent the arm somewhere."""

        def found() -> int | None:
            for tick in list(self._ticks):
                if tick.read_ns > after_ns and tick.drive in OBEYS and tick.sent is not None:
                    return tick.read_ns
            return None

        return wait_for("the arm obeys", found, timeout_s, poll_s=0.005)

    def period_errors_ms(self, begin_ns: int, end_ns: int) -> list[float]:
        """|interval - period| of the moments at which the loop woke."""
        woke = [(tick.seq, tick.due_ns, tick.due_ns + tick.late_ns) for tick in list(self._ticks)]
        woke = [each for each in woke if begin_ns <= each[1] <= end_ns]
        return [
            abs((later[2] - earlier[2]) - (later[1] - earlier[1])) / 1e6
            for earlier, later in pairwise(woke)
            if later[0] == earlier[0] + 1
        ]

    def close(self) -> None:
        self._stop.set()
        self._thread.join(2.0)
        self._subscriber.close()


class Bench:
    """A station, a fleet of one, and an operator without patience."""

    def __init__(self, folder: Path, console: Console, dice: random.Random, window_s: float) -> None:
        self._console, self._dice, self._window_s = console, dice, window_s
        self.rig = Rig(folder / "station", cameras=1)
        settings = {"idle_min": 0.0, "min_free_memory_gb": 0.5, "min_free_disk_gb": 0.5}
        self._file = self.rig.configuration("agent", federation=settings)
        self._fleet = Fleet.init(folder / "fleet", "bench", ())
        shutil.copytree(POLICY, self._fleet.policies / POLICY.name)
        paths = self.rig.config.paths
        shutil.copytree(POLICY, paths.policies / POLICY.name)
        shutil.copytree(drawn(folder / "drawn", 20), paths.datasets / DATASET)
        self._address = f"127.0.0.1:{free_ports(1)[0]}"
        self._serve: subprocess.Popen[bytes] | None = None
        self._folder = folder

    def __enter__(self) -> "Bench":
        self.rig.start()
        command = [sys.executable, "-m", "agent.cli", "fleet", "serve", "--fleet", str(self._fleet.folder)]
        with (self._folder / "serve.log").open("ab") as log:
            self._serve = subprocess.Popen(
                [*command, "--bind", self._address], stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )
        self.daemon = Daemon(self._file, self._folder / "agent.log")
        wait_for("the station is ready", lambda: ready(self.daemon.status()), poll_s=0.1)
        wait_for("the fleet is served", self._served, poll_s=0.2)
        self.ticks = Ticks(self.daemon.config.paths.arm_pub)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AttributeError):
            self.ticks.close()
            self.daemon.close()
        if self._serve:
            end(self._serve, 30.0)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._serve.pid, signal.SIGKILL)
        self.rig.close()

    def _served(self) -> bool:
        with contextlib.suppress(AgentError):
            return bool(self._fleet.serving())
        return False

    def ask(self, verb: str, **args: Any) -> dict[str, Any]:
        return self.daemon.client.call(verb, args, timeout_s=30.0)

    def federation(self) -> dict[str, Any]:
        return self.ask("fl.status")

    def enroll(self) -> None:
        made = self.ask("fl.enroll", superlink=self._address, ca=self._fleet.authority.read_text())
        self._fleet.add_station("bench", made["public_key"])
        self.ask("fl.consent", dataset=DATASET, on=True)

    def begin_run(self) -> None:
        control = Control(self._fleet)
        try:
            fleet_runs.submit(self._fleet, control, RUN, fleet_runs.packed(None), SETTINGS)
        finally:
            control.close()

    def rounds(self) -> list[dict[str, Any]]:
        return [each for each in rounds(self._fleet.runs / RUN) if each["round"] > 0]

    def teleoperate(self) -> Start:
        """Want the arm, keep it for a moment, give it back."""
        before = self.federation()
        progress = before.get("progress") or {}
        began_ns = time.monotonic_ns()
        self.ask("teleop.start")
        answered_ns = time.monotonic_ns()
        first_ns = self.ticks.first_obeying_ns(began_ns)
        time.sleep(USED_S)
        off_s = None
        if before["state"] not in ("off", "waiting"):
            wait_for("the SuperNode is gone", lambda: self.federation()["state"] == "off", TWO_MINUTES_S, poll_s=0.1)
            off_s = (time.monotonic_ns() - began_ns) / 1e9
        self.ask("hold")
        self.ask("release")
        wait_for("the station is idle", lambda: self.ask("status")["mode"] in ("idle", "training"), poll_s=0.05)
        doing = progress.get("doing", "") if before["state"] == "working" else ""
        return Start(before["state"], doing, (first_ns - began_ns) / 1e6, (answered_ns - began_ns) / 1e6, off_s)

    def quiet(self, times: int) -> tuple[list[Start], list[float]]:
        """The same station while it takes no part in anything."""
        starts = [self.teleoperate() for _ in range(times)]
        return starts, self._regularity()

    def training(self) -> list[float]:
        """The control loop while a trainer is at its steps, until it has been for long enough."""
        self.ask("fl.resume", now=True)
        self._until_it_learns(600.0)
        return self._regularity()

    def _until_it_learns(self, within_s: float) -> None:
        seen = self._step()
        wait_for("the trainer learns", lambda: self._step() not in (None, seen), within_s, poll_s=0.2)

    def _step(self) -> tuple[int, int] | None:
        """Round and step of a trainer at work."""
        progress = self.federation().get("progress") or {}
        return (progress["round"], progress["step"]) if progress.get("step") else None

    def _regularity(self) -> list[float]:
        begin_ns = time.monotonic_ns()
        time.sleep(self._window_s)
        return self.ticks.period_errors_ms(begin_ns, time.monotonic_ns())

    def interrupt(self, times: int) -> list[Start]:
        starts = []
        for number in range(times):
            self.ask("fl.resume", now=True)
            if number % STEPS_EVERY == STEPS_EVERY - 1:
                self._until_it_learns(TWO_MINUTES_S)
                time.sleep(self._dice.uniform(*AT_STEPS_S))
            else:
                time.sleep(self._dice.uniform(*EARLY_S))
            start = self.teleoperate()
            starts.append(start)
            self._console.print(
                f"{number + 1:3d}  {start.state:9s} {start.doing:10s} first tick {start.first_tick_ms:6.1f} ms, "
                f"gone after {start.off_s or 0:.1f} s"
            )
        self.ask("fl.resume", now=True)
        self._until_it_learns(TWO_MINUTES_S)
        return starts


KEYS: Final = ("p50", "p99", "max", "count")


def summary(values: list[float]) -> dict[str, float]:
    return {
        "p50": round(statistics.median(values), 2),
        "p99": round(percentile(values, 99), 2),
        "max": round(max(values), 2),
        "count": len(values),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="pre-emptions (default 50)")
    parser.add_argument("--baseline", type=int, default=12, help="starts without training (default 12)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="6 pre-emptions: whether it works, not how well")
    asked = parser.parse_args()
    times, baseline, window_s = QUICK if asked.quick else (asked.times, asked.baseline, WINDOW_S)
    console = Console(width=None if Console().is_terminal else 120)
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))
    began_s = time.monotonic()
    try:
        with Bench(folder, console, random.Random(asked.seed), window_s) as bench:
            console.print("A station that takes no part:")
            idle, idle_errors = bench.quiet(baseline)
            bench.enroll()
            bench.begin_run()
            console.print("The control loop while it trains:")
            training_errors = bench.training()
            console.print("Wanted at random moments:")
            wanted = bench.interrupt(times)
            found = bench.rounds()
    except BenchError as error:
        console.print(f"[red]{error}[/red]\n{(folder / 'agent.log').read_text()[-3000:]}")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    declined = sum((Counter(each.get("declined") or {}) for each in found), Counter[str]())
    result = {
        "first_tick_ms": {
            "idle": summary([each.first_tick_ms for each in idle]),
            "training": summary([each.first_tick_ms for each in wanted]),
        },
        "period_error_ms": {"idle": summary(idle_errors), "training": summary(training_errors)},
        "gone_after_s": summary([each.off_s for each in wanted if each.off_s is not None]),
        "moments": dict(Counter(each.doing or each.state for each in wanted)),
        "rounds": {
            "all": len(found),
            "with whole or partial work": sum(each.get("used", 0) > 0 for each in found),
            "with partial work": sum(each.get("partial", 0) > 0 for each in found),
            "declined": dict(declined),
            "without a reply": sum(each.get("silent", 0) > 0 for each in found),
            "with a broken reply": sum(each.get("broken", 0) > 0 for each in found),
        },
        "wedged": 0,  # or the benchmark would have ended above
        "minutes": round((time.monotonic() - began_s) / 60, 1),
    }
    if not asked.quick:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    _show(console, result)
    return 0


def _show(console: Console, result: dict[str, Any]) -> None:
    table = Table("", "takes no part: p50", "p99", "max", "n", "trains: p50", "p99", "max", "n", box=None)
    for name, title in (("first_tick_ms", "first tick, ms"), ("period_error_ms", "period error, ms")):
        sides = (result[name]["idle"], result[name]["training"])
        cells = [f"{side[key]:.2f}" if key != "count" else str(side[key]) for side in sides for key in KEYS]
        table.add_row(title, *cells)
    console.print(table)
    for name in ("gone_after_s", "moments", "rounds", "wedged", "minutes"):
        console.print(f"{name.replace('_', ' ')}: {result[name]}")


if __name__ == "__main__":
    sys.exit(main())
