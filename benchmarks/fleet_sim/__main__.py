"""A thousand stations on one mosquitto, on this machine.

    python -m benchmarks.fleet_sim [--stations N] [--plain] [--quick] [--seconds S] [--results FILE] [--figure FILE]

Each station is the agent's own MQTT code over mutual TLS; only what is behind it (daemon, arm, disk) is simulated.
"""

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks.control_bench.host import cpu_between, cpu_s, end, resident_mb
from benchmarks.fleet_sim import certificates, figure
from benchmarks.fleet_sim.broker import ROOT, Broker
from benchmarks.fleet_sim.desk import Desk, summary
from benchmarks.fleet_sim.report import Row, machine, table
from benchmarks.fleet_sim.stations import CHANGE_EVERY_S

RESULTS: Final = ROOT / "benchmarks" / "results" / "fleet-sim.json"
FIGURE: Final = ROOT / "docs" / "images" / "fleet-broker.png"

LONGEST_S: Final = 290.0
"""The whole run."""

STEPS: Final = 4
RATES_HZ: Final = (2.0, 5.0)
"""Telemetry of every station, after the ramp at 1 Hz: what more stations would send."""

COMMANDS_HZ: Final = 50.0
SETTLE_S: Final = 3.0
CONNECT_S: Final = 90.0
BROKER_AWAY_S: Final = 5.0
PROCESSES: Final = 2
CURVE_POINTS: Final = 150


class Bench:
    def __init__(self, asked: argparse.Namespace, folder: Path, console: Console) -> None:
        self._asked = asked
        self._folder = folder
        self._console = console
        self._broker = Broker(folder, asked.plain)
        self._chance = random.Random(1)
        self._workers: list[subprocess.Popen[bytes]] = []
        self._dashboard: asyncio.subprocess.Process | None = None
        self._seconds: list[dict[str, Any]] = []
        self._counts = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        count, seconds = self._asked.stations, self._asked.seconds
        names = [f"s{number:05}" for number in range(count)]
        if not self._asked.plain:
            certificates.make(self._folder / "tls", [*names, "fleet", "dashboard"])
        self._broker.start()
        empty_mb = self._broker.resident_mb()
        try:
            await self._start()
            self._simulator_empty_mb = sum(resident_mb(worker.pid) for worker in self._workers)
            async with Desk(self._folder, self._broker.port, self._asked.plain).running() as desk:
                rows = []
                for step in [STEPS] if self._asked.quick else range(1, STEPS + 1):
                    rows.append(await self._row(desk, count * step // STEPS, 1.0, seconds))
                    self._console.print(rows[-1].sentence())
                reconnect = await self._mass_reconnect(desk, count)
                full = rows[-1]
                for hz in RATES_HZ[: 1 if self._asked.quick else None]:
                    self._tell(f"rate {hz:g}")
                    await desk.wait_empty(CONNECT_S)
                    rows.append(await self._row(desk, count, hz, seconds))
                    self._console.print(rows[-1].sentence())
        finally:
            self._end()
        return {
            "machine": machine(),
            "settings": {"stations": count, "plain": self._asked.plain, "change_every_s": CHANGE_EVERY_S},
            "rows": [asdict(row) for row in rows],
            "broker_kb_per_station": round((full.broker_mb - empty_mb) * 1024 / count, 1),
            "simulator_kb_per_station": round((full.simulator_mb - self._simulator_empty_mb) * 1024 / count, 1),
            "reconnect": reconnect,
        }

    async def _start(self) -> None:
        common = [str(self._folder), str(self._broker.port)]
        plain = ["--plain"] * self._asked.plain
        (self._folder / "seen").mkdir()
        each = self._asked.stations // PROCESSES
        for number in range(PROCESSES):
            program = [sys.executable, "-m", "benchmarks.fleet_sim.stations", *common, str(number * each), "1", *plain]
            self._workers.append(subprocess.Popen(program, stdin=subprocess.PIPE, cwd=ROOT))  # noqa: ASYNC220
        self._dashboard = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.fleet_sim.dashboard", *common, *plain, stdout=subprocess.PIPE, cwd=ROOT
        )
        assert self._dashboard.stdout  # noqa: S101 - a pipe was asked for
        self._reading = asyncio.create_task(self._read(self._dashboard.stdout))
        await asyncio.wait_for(self._counts.wait(), CONNECT_S)  # its first line: everything is imported

    async def _read(self, lines: asyncio.StreamReader) -> None:
        async for line in lines:
            self._seconds.append(json.loads(line))
            self._counts.set()

    def _tell(self, line: str) -> None:
        for worker in self._workers:
            assert worker.stdin  # noqa: S101 - a pipe was asked for
            worker.stdin.write(f"{line}\n".encode())
            worker.stdin.flush()

    async def _row(self, desk: Desk, stations: int, hz: float, seconds: float) -> Row:
        self._tell(f"up {stations // PROCESSES}")
        connect_s = await desk.wait_online(stations, CONNECT_S)
        await asyncio.sleep(SETTLE_S)
        pids = [worker.pid for worker in self._workers]
        before, before_broker_s, began, heard = cpu_s(pids), self._broker.cpu_s(), time.monotonic(), len(self._seconds)
        answers = await desk.command(COMMANDS_HZ, seconds, self._chance)
        took_s = time.monotonic() - began
        told = self._seconds[heard:]
        ages = [one["age_p99_ms"] for one in told if one["age_p99_ms"] is not None]
        return Row(
            stations=stations,
            telemetry_hz=hz,
            connect_s=round(connect_s, 1),
            messages_per_s=round(sum(one["messages"] for one in told) / max(1, len(told))),
            expected_per_s=round(stations * (hz + 2 / CHANGE_EVERY_S)),
            kbytes_per_s=round(sum(one["bytes"] for one in told) / max(1, len(told)) / 1000),
            broker_cpu_pct=round(100 * (self._broker.cpu_s() - before_broker_s) / took_s, 1),
            broker_mb=round(self._broker.resident_mb(), 1),
            simulator_cpu_pct=round(100 * cpu_between(before, cpu_s(pids)) / took_s, 1),
            simulator_mb=round(sum(resident_mb(pid) for pid in pids), 1),
            telemetry_age_p99_ms=round(max(ages), 1) if ages else None,
            answers=summary(answers),
        )

    async def _mass_reconnect(self, desk: Desk, stations: int) -> dict[str, Any]:
        """The broker is killed, is away for some seconds, and comes back with nothing remembered."""
        self._broker.kill()
        await asyncio.sleep(BROKER_AWAY_S)
        desk.arrivals.clear()
        self._broker.start()
        began, before_s = time.monotonic(), self._broker.cpu_s()
        await desk.wait_online(stations, CONNECT_S)
        used_s = self._broker.cpu_s() - before_s
        curve = [(round(at - began, 3), online) for at, online in desk.arrivals]
        busiest = max(sum(second <= at < second + 1 for at, _ in curve) for second in range(int(curve[-1][0]) + 1))
        answers = await desk.command(COMMANDS_HZ, self._asked.seconds / 2, self._chance)
        result = {
            "broker_away_s": BROKER_AWAY_S,
            **{f"back_{pct}_pct_s": _reached(curve, stations * pct / 100) for pct in (50, 90, 99, 100)},
            "busiest_second": busiest,
            "broker_cpu_s": round(used_s, 2),
            "broker_mb": round(self._broker.resident_mb(), 1),
            "answers": summary(answers),
            "curve": curve[:: max(1, len(curve) // CURVE_POINTS)] + curve[-1:],
        }
        times = ", ".join(f"{pct}% after {result[f'back_{pct}_pct_s']} s" for pct in (50, 90, 99, 100))
        self._console.print(f"broker killed, away for {BROKER_AWAY_S:g} s; of {stations} stations are back: {times}")
        return result

    def _end(self) -> None:
        for worker in self._workers:
            end(worker)
        if self._dashboard and self._dashboard.returncode is None:
            self._dashboard.kill()
            self._reading.cancel()
        self._broker.kill()


def _reached(curve: Sequence[tuple[float, int]], count: float) -> float:
    return next(at for at, online in curve if online >= count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stations", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement")
    parser.add_argument("--plain", action="store_true", help="without TLS and without ACL")
    parser.add_argument("--quick", action="store_true", help="two loads instead of six: to see whether it works")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    asked = parser.parse_args()
    if asked.stations % (STEPS * PROCESSES):
        parser.error(f"--stations must be a multiple of {STEPS * PROCESSES}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a socket a station, twice
    console = Console(width=150)
    memory = Path("/dev/shm")  # noqa: S108 - a thousand disks are simulated there, in a private folder
    with tempfile.TemporaryDirectory(prefix="fleet-", dir=memory if memory.is_dir() else None) as folder:
        result = asyncio.run(_bounded(Bench(asked, Path(folder), console)))
    console.print(table(result))
    broker_kb, simulator_kb = result["broker_kb_per_station"], result["simulator_kb_per_station"]
    console.print(f"a station costs the broker {broker_kb} KB and the simulator {simulator_kb} KB")
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    asked.results.write_text(json.dumps(result, indent=1) + "\n")
    figure.draw(result, asked.figure)
    console.print(f"{asked.results}\n{asked.figure}")


async def _bounded(bench: Bench) -> dict[str, Any]:
    async with asyncio.timeout(LONGEST_S):
        return await bench.run()


if __name__ == "__main__":
    main()
