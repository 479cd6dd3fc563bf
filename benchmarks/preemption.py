"""How long an operator waits for an arm whose computer is training, and what that does to the fleet's rounds.

    python -m benchmarks.preemption [--times 50] [--baseline 12] [--seed 0] [--quick]

One virtual station is alone in its fleet and learns without end, round after round: the demo policy, on drawn episodes.
At random moments teleoperation is started, wherever the station is just then: joining, waiting, loading, at a step, or
sending its reply. Two of three moments lie within 14 s of joining, the third within 5 s of a step, because on a small
computer nothing is learnt before then. Measured is the time from the request to the first tick in which the arm obeys,
beside that of the same station while it takes no part; the regularity of the control loop in both; and what each round
of the fleet got. A station is wedged when it does not learn again within two minutes of being let.

It takes half an hour. What was seen is written down however it ends: Ctrl-C after half of it shows that half.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from agent.errors import AgentError
from agent.fl import fleet_runs
from agent.fl.fleet import Fleet
from agent.fl.fleet_control import Control
from agent.fl.fleet_report import rounds
from agent.fl.synthetic import drawn
from benchmarks.control import machine
from benchmarks.control_bench.agent_side import Daemon, ready
from benchmarks.control_bench.host import end
from benchmarks.control_bench.rig import ROOT, BenchError, Rig, free_ports, wait_for
from benchmarks.interruption import ends_in_order
from benchmarks.preemption_bench.report import Findings, Start, result, show
from benchmarks.preemption_bench.ticks import Ticks

RESULTS: Final = ROOT / "benchmarks" / "results" / "preemption.json"
POLICY: Final = ROOT / "policies" / "demo-reach"
RUN: Final = "endless"
DATASET: Final = "drawn"

SETTINGS: Final[dict[str, bool | int | float | str]] = {
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
USED_S: Final = 3.0
"""How long an operator keeps the arm at least: longer than the trainer stands still, so that it goes on beside it."""

WINDOW_S: Final = 30.0
"""Of the control loop, for its regularity."""

WINDOWS: Final = 2
"""While it trains; as many before that, and as many when all is over, while it takes no part."""

EARLY_S: Final = (0.0, 14.0)
"""After the station may join again."""

AT_STEPS_S: Final = (0.0, 5.0)
"""After a step was seen."""

STEPS_EVERY: Final = 3
QUICK: Final = (6, 5, 10.0)  # times, baseline, window

GONE_S: Final = 120.0
"""For a SuperNode to leave: 30 s for the reply, and some more."""

PATIENCE_S: Final = 600.0
"""For learning to begin: after two minutes the station counts as wedged, and the benchmark goes on if it can."""

FREE: Final = ("idle", "training")


class Bench:
    """A station, a fleet of one, and an operator without patience."""

    def __init__(self, folder: Path, console: Console, dice: random.Random, window_s: float) -> None:
        self._console, self._dice, self._window_s = console, dice, window_s
        self._folder = folder
        self.found = Findings()
        self.rig = Rig(folder / "station", cameras=1)
        settings = {"idle_min": 0.0, "min_free_memory_gb": 0.5, "min_free_disk_gb": 0.5}
        self._file = self.rig.configuration("agent", federation=settings)
        self._fleet = Fleet.init(folder / "fleet", "bench", ())
        shutil.copytree(POLICY, self._fleet.policies / POLICY.name)
        paths = self.rig.config.paths
        shutil.copytree(POLICY, paths.policies / POLICY.name)
        shutil.copytree(drawn(folder / "drawn", 20), paths.datasets / DATASET)
        self._address = f"127.0.0.1:{free_ports(1)[0]}"
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Bench":
        with self._open as opening:  # what was started is ended when something after it does not start
            opening.callback(self.rig.close)
            self.rig.start()
            opening.callback(_end_fleet, self._serve())
            self.daemon = Daemon(self._file, self._folder / "agent.log")
            opening.callback(self.daemon.close)
            wait_for("the station is ready", lambda: ready(self.daemon.status()), poll_s=0.1)
            wait_for("the fleet is served", self._served, poll_s=0.2)
            self.ticks = Ticks(self.daemon.config.paths.arm_pub)
            opening.callback(self.ticks.close)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _serve(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "agent.cli", "fleet", "serve", "--fleet", str(self._fleet.folder)]
        with (self._folder / "serve.log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--bind", self._address], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
                start_new_session=True,
            )  # fmt: skip

    def _served(self) -> bool:
        with contextlib.suppress(AgentError):
            return bool(self._fleet.serving())
        return False

    def ask(self, verb: str, **args: Any) -> dict[str, Any]:
        return self.daemon.client.call(verb, args, timeout_s=30.0)

    def federation(self) -> dict[str, Any]:
        return self.ask("fl.status")

    def run(self, times: int, baseline: int) -> None:
        """All of it; what was seen is in `found`, whatever is raised."""
        began_s = time.monotonic()
        found = self.found
        try:
            self._console.print("A station that takes no part:")
            for _ in range(baseline):
                found.idle.append(self._teleoperate())
            found.idle_errors_ms += self._windows()
            self._enroll()
            self._begin_run()
            self._console.print("The control loop while it trains:")
            self._until_it_learns(again=False)
            found.training_errors_ms += self._windows()
            self._console.print("Wanted at random moments:")
            for number in range(1, times + 1):
                self._interrupt(number)
            self._until_it_learns()
            self.ask("fl.pause")
            self._until_off()
            found.idle_errors_ms += self._windows()
        except (AgentError, BenchError) as error:
            found.ended = str(error)
        except KeyboardInterrupt:
            found.ended = "interrupted"
        found.rounds = [each for each in rounds(self._fleet.runs / RUN) if each["round"] > 0]
        found.seconds = time.monotonic() - began_s

    def logs(self) -> str:
        """The ends of all, for whoever wants to know why it ended."""
        here, fleet = self._folder, self._fleet.folder
        files = (
            here / "agent.log", self.rig.config.paths.federation / "supernode.log", here / "serve.log",
            fleet / "superlink.log",
        )  # fmt: skip
        return "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in files if file.exists())

    def _enroll(self) -> None:
        made = self.ask("fl.enroll", superlink=self._address, ca=self._fleet.authority.read_text())
        self._fleet.add_station("bench", made["public_key"])
        self.ask("fl.consent", dataset=DATASET, on=True)

    def _begin_run(self) -> None:
        control = Control(self._fleet)
        try:
            fleet_runs.submit(self._fleet, control, RUN, fleet_runs.packed(None), SETTINGS)
        finally:
            control.close()

    def _interrupt(self, number: int) -> None:
        """Let it join, and want the arm at a random moment. One that fails is noted, and the next is tried."""
        if number % STEPS_EVERY == 0:
            self._until_it_learns()
            begin_ns = time.monotonic_ns()
            time.sleep(self._dice.uniform(*AT_STEPS_S))
            self.found.at_steps_errors_ms.append(self.ticks.period_errors_ms(begin_ns, time.monotonic_ns()))
        else:
            self.ask("fl.resume", now=True)
            time.sleep(self._dice.uniform(*EARLY_S))
        try:
            start = self._teleoperate()
        except (AgentError, BenchError) as error:
            self.found.failed.append(f"{number}: {error}")
            self._console.print(f"{number:3d}  failed: {error}", markup=False)
            self._free()
            return
        self.found.wanted.append(start)
        self._console.print(
            f"{number:3d}  {start.state:9s} {start.doing:10s} first tick {start.first_tick_ms:6.1f} ms, "
            f"gone after {start.off_s or 0:.1f} s",
            highlight=False,
        )

    def _teleoperate(self) -> Start:
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
            self._until_off()
            off_s = (time.monotonic_ns() - began_ns) / 1e9
        self.ask("hold")
        self.ask("release")
        wait_for("the station is idle", lambda: self.ask("status")["mode"] in FREE, poll_s=0.05)
        doing = progress.get("doing", "loading") if before["state"] == "working" else ""
        return Start(before["state"], doing, (first_ns - began_ns) / 1e6, (answered_ns - began_ns) / 1e6, off_s)

    def _free(self) -> None:
        """The arm is nobody's, as before a start. Raises BenchError when that cannot be had."""

        def freed() -> bool:
            with contextlib.suppress(AgentError):  # a fault that passes
                self.ask("release")
                return self.ask("status")["mode"] in FREE
            return False

        wait_for("the arm is free again", freed, GONE_S, poll_s=1.0)

    def _until_off(self) -> None:
        wait_for("the SuperNode is gone", lambda: self.federation()["state"] == "off", GONE_S, poll_s=0.1)

    def _until_it_learns(self, again: bool = True) -> None:
        """Let it, and wait until the trainer has made a step. With `again`, how long that took is noted."""
        self.ask("fl.resume", now=True)
        began_s, seen = time.monotonic(), self._step()
        try:
            wait_for("the trainer learns", lambda: self._step() not in (None, seen), PATIENCE_S, poll_s=0.2)
        finally:
            if again:
                self.found.learns_after_s.append(time.monotonic() - began_s)

    def _step(self) -> tuple[int, int] | None:
        """Round and step of a trainer at work."""
        progress = self.federation().get("progress") or {}
        return (progress["round"], progress["step"]) if progress.get("step") else None

    def _windows(self) -> list[list[float]]:
        """Period errors of the control loop."""
        found = []
        for _ in range(WINDOWS):
            begin_ns = time.monotonic_ns()
            time.sleep(self._window_s)
            found.append(self.ticks.period_errors_ms(begin_ns, time.monotonic_ns()))
        return found


def _end_fleet(serve: "subprocess.Popen[bytes]") -> None:
    end(serve, 30.0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(serve.pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="pre-emptions (default 50)")
    parser.add_argument("--baseline", type=int, default=12, help="starts without training (default 12)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="6 pre-emptions: whether it works, not how well")
    asked = parser.parse_args()
    times, baseline, window_s = QUICK if asked.quick else (asked.times, asked.baseline, WINDOW_S)
    ends_in_order()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    console = Console(width=None if Console().is_terminal else 120)
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))  # Unix sockets need a short path
    try:
        bench = Bench(folder, console, random.Random(asked.seed), window_s)
        try:
            with bench:
                bench.run(times, baseline)
        except BenchError as error:  # the station or the fleet does not start
            bench.found.ended = str(error)
        if bench.found.ended:
            console.print(bench.logs(), markup=False, highlight=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    about = {"machine": machine(), "load": os.getloadavg()[1], "seed": asked.seed, "asked": times}
    seen = about | result(bench.found)
    show(seen, console)
    if bench.found.wanted and not asked.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(seen, indent=1) + "\n")
        console.print(f"Every start is in {RESULTS.relative_to(ROOT)}.")
    return 1 if seen["ended_early"] or seen["failed"] or seen["wedged"] else 0


if __name__ == "__main__":
    sys.exit(main())
