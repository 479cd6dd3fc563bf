"""lerobot's record loop against this agent, on the same virtual arm, in the same run.

    python -m benchmarks.control [--quick] [--repeats N] [--seconds S] [--all] [--rendered]
                                 [--markdown FILE]

Runs of the sides take turns; medians of them are compared. docs/benchmarks.md says how to read the table.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks.control_bench import agent_side, report
from benchmarks.control_bench.lerobot_side import LerobotRun
from benchmarks.control_bench.report import AGENT, LEROBOT, NORMAL, Run
from benchmarks.control_bench.rig import ROOT, BenchError, Rig
from benchmarks.control_bench.stats import timing
from benchmarks.interruption import ends_in_order

RESULTS: Final = ROOT / "benchmarks" / "results" / "control.json"

WIDTH: Final = 132
"""Columns of the tables where there is no terminal to ask."""

LEROBOT_S: Final = 120.0
"""Beyond the recording itself: imports, connecting, saving."""

FAST_HZ: Final = 100
FAST_FPS: Final = 20
"""Rows a second of the 100 Hz run: the control rate must be a multiple."""

FOUR: Final = "so-agent, four cameras"

AGENT_SETTINGS: Final[dict[str, dict[str, Any]]] = {AGENT: {}, NORMAL: {"robot__realtime_priority": 0}}


class Bench:
    """One run of the whole benchmark in a temporary folder."""

    def __init__(self, asked: argparse.Namespace, folder: Path, console: Console) -> None:
        self._asked = asked
        self._folder = folder
        self._console = console
        self._count = 0

    def side_by_side(self) -> tuple[dict[str, list[Run]], dict[str, list[Run]]]:
        """Every side `repeats` times, in turns; then the further runs, once each."""
        rig = Rig(self._folder / "pair", rendered=self._asked.rendered)
        sides: dict[str, list[Run]] = {name: [] for name in report.SIDES}
        further: dict[str, list[Run]] = {}
        try:
            rig.start()
            if not rig.realtime:
                self._say("No right to real-time priority here: the virtual arm adds its own delays to both sides.")
            for _ in range(self._asked.repeats):
                sides[LEROBOT].append(self._lerobot(rig, LEROBOT))
                for name, settings in AGENT_SETTINGS.items():
                    sides[name].append(self._agent(rig, name, **settings))
            if not self._asked.quick:
                settings = {"robot__control_hz": FAST_HZ, "recording__fps": FAST_FPS}
                name = f"so-agent, {FAST_HZ} Hz"
                further[name] = [self._agent(rig, name, FAST_HZ, kill_arm=False, **settings)]
            if self._asked.all:
                name = "so-agent, SVT-AV1"
                further[name] = [self._agent(rig, name, kill_arm=False, recording__vcodec="libsvtav1")]
                name = "lerobot, h264"
                further[name] = [self._lerobot(rig, name, vcodec="h264")]
                name = "lerobot, PNG first"
                further[name] = [self._lerobot(rig, name, streaming=False)]
        finally:
            rig.close()
        return sides, further

    def four_cameras(self) -> Run | None:
        """Four synthetic 640x480 cameras at 30 fps, through real camera processes and recorder; None when it failed."""
        rig = Rig(self._folder / "four", cameras=4)
        try:
            rig.start()
            return self._agent(rig, FOUR, kill_arm=False)
        except BenchError as error:  # what was measured before is worth showing
            self._say(str(error))
            return None
        finally:
            rig.close()

    def look(self, runs: list[Run]) -> None:
        """Let stock lerobot open what was recorded; adds `seen` to every run."""
        roots = [run["dataset"] for run in runs]
        self._say(f"stock lerobot opens {len(roots)} datasets")
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.control_bench.verify", *roots],
            capture_output=True, check=True, cwd=ROOT, timeout=300,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        for run in runs:
            run["seen"] = found[run["dataset"]]
            if "error" in run["seen"]:
                raise BenchError(f"stock lerobot cannot open {run['dataset']}: {run['seen']['error']}")

    def _lerobot(self, rig: Rig, name: str, streaming: bool = True, vcodec: str | None = None) -> Run:
        root = self._next(name)
        file = root.with_suffix(".json")
        asked = LerobotRun(str(rig.file), str(root), self._asked.seconds, streaming, vcodec)
        file.write_text(json.dumps(asdict(asked)))
        load = os.getloadavg()[0]
        with root.with_suffix(".log").open("wb") as log:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.control_bench.lerobot_side", str(file)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd=ROOT,
                timeout=self._asked.seconds + LEROBOT_S,
            )  # fmt: skip
        if done.returncode:
            raise BenchError(f"lerobot's side failed:\n{root.with_suffix('.log').read_text()[-2000:]}")
        run: Run = json.loads(done.stdout.splitlines()[-1])
        own = timing(run.pop("sent_ns"), rig.config.recording.fps)
        run |= {"own_p99_ms": own.error_p99_ms, "own_loop": asdict(own), "load": load, "dataset": str(root)}
        return self._timed(rig, run, rig.config.recording.fps)

    def _agent(self, rig: Rig, name: str, hz: int = 30, kill_arm: bool = True, **settings: Any) -> Run:
        copy = self._next(name)
        # However many pictures repeat, the run is reported, not rejected.
        settings = {"recording__dataset": copy.name, "recording__max_repeat_pct": 100, **settings}
        config = rig.configuration(copy.name, **settings)
        load = os.getloadavg()[0]
        asked = agent_side.AgentRun(config, copy, self._asked.seconds, kill_arm)
        run = agent_side.record(asked, copy.with_suffix(".log"))
        run |= {"own_p99_ms": run["own_loop"]["period_error_p99_ms"], "load": load, "dataset": str(copy)}
        return self._timed(rig, run, hz)

    def _timed(self, rig: Rig, run: Run, hz: int) -> Run:
        run["timing"] = asdict(timing(rig.written_ns(run["begin_ns"], run["stop_ns"]), hz))
        self._say(
            f"  p99 {run['timing']['error_p99_ms']:.2f} ms, {run['timing']['rate_hz']:.3f} Hz, "
            f"{report.cpu(run):.2f} cores, readable after {report.stop_to_readable_s(run):.2f} s "
            f"(load was {run['load']:.1f})"
        )
        return run

    def _next(self, name: str) -> Path:
        self._count += 1
        self._say(f"{self._count}. {name}, {self._asked.seconds:g} s")
        return self._folder / f"run-{self._count}"

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].partition(":")[2].strip() if model else platform.machine(),
        "cores": os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of every side")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of every recording")
    parser.add_argument("--quick", action="store_true", help="one short run of every side, to see that it works")
    parser.add_argument(
        "--all", action="store_true", help="also each side with the other's codec, and lerobot with PNG"
    )
    parser.add_argument(
        "--rendered", action="store_true", help="cameras drawn by the virtual station, which takes most of a core"
    )
    parser.add_argument("--markdown", type=Path, help="write the tables to this file as well")
    asked = parser.parse_args(argv)
    if asked.quick:
        asked.repeats, asked.seconds = 1, 8.0
    if asked.repeats < 1 or not 5 <= asked.seconds <= 600:
        parser.error("--repeats must be 1 or more, --seconds 5 to 600")
    return asked


def main(argv: list[str] | None = None) -> int:
    asked = parse(sys.argv[1:] if argv is None else argv)
    ends_in_order()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ.setdefault("MUJOCO_GL", "egl")
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="so-bench-", dir="/tmp"))  # Unix sockets need a short path
    try:
        bench = Bench(asked, folder, console)
        sides, further = bench.side_by_side()
        four = bench.four_cameras()
        if four:
            further[FOUR] = [four]
        bench.look([run for runs in (*sides.values(), *further.values()) for run in runs])
    except KeyboardInterrupt:
        console.print("interrupted; everything that was started has been ended")
        return 130
    except BenchError as error:
        console.print(f"[red]{error}")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tables = {
        f"Recording two 640x480 cameras at 30 fps: medians of {asked.repeats} x {asked.seconds:g} s, and the range": (
            report.comparison(sides)
        ),
        "Further runs, once each": report.comparison(further),
        "Aims": report.judgement(report.aims(sides, four)),
    }
    for title, lines in tables.items():
        report.show(console, title, lines)
    facts = machine()
    console.print(f"{facts}, {time.monotonic() - started:.0f} s", highlight=False)
    RESULTS.parent.mkdir(exist_ok=True)
    results = {"machine": facts, "asked": vars(asked) | {"markdown": str(asked.markdown)}, "sides": sides | further}
    RESULTS.write_text(json.dumps(results, indent=1))
    console.print(f"every run: {RESULTS}")
    if asked.markdown:
        asked.markdown.write_text(
            "\n".join(f"**{title}**\n\n{report.markdown(lines)}" for title, lines in tables.items())
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
