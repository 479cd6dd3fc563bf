"""Whole rounds of a fleet of one, on loopback: see `python -m benchmarks.federation round`."""

import asyncio
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from agent.fl.base import SHIPPED
from agent.fl.node import NodeState
from agent.fl.synthetic import drawn
from benchmarks.control import machine
from benchmarks.control_bench.host import children_of, cpu_s
from benchmarks.control_bench.rig import free_ports
from tests.fl.bench import Member, Server

POLICY: Final = "demo-reach"
RUN: Final = "rounds"
MIB: Final = 2**20
EPISODES: Final = 6
RUN_S: Final = 600.0
LOOK_S: Final = 2.0
SETTLED_S: Final = 10.0
"""Of waiting for a round, before anything of that is read: imports are over then."""

WAITING_S: Final = 20.0


class Watch:
    """What the processes of both sides take: those of `fleet serve`, and those that the station's federation starts."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.most_bytes = 0
        self.after_round: list[tuple[float, float]] = []  # CPU seconds of the fleet's side and of the station's

    def memory_bytes(self) -> int:
        """Of the station's side. A page that several share is counted once."""
        _, station = self._sides()
        found = sum(_share_bytes(pid) for pid in station)
        self.most_bytes = max(self.most_bytes, found)
        return found

    def cpu_s(self) -> tuple[float, float]:
        """Of the fleet's side and of the station's, so far."""
        fleet, station = self._sides()
        return sum(cpu_s(fleet).values()), sum(cpu_s(station).values())

    def _sides(self) -> tuple[set[int], set[int]]:
        fleet = set(children_of(self._server.process.pid)) if self._server.process else set()
        return fleet, set(children_of(os.getpid())) - fleet - {os.getpid()}

    async def look(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.to_thread(self.memory_bytes)
            if len(self._server.rounds(RUN)) > len(self.after_round) + 1:  # there is one of number 0
                self.after_round.append(await asyncio.to_thread(self.cpu_s))
            await asyncio.sleep(LOOK_S)


async def whole_rounds(rounds: int, warm: bool) -> dict[str, Any]:
    """JSON. Seconds are from asking the station to its reply, as the server notes them."""
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))  # Unix sockets need a short path
    server = Server(folder, free_ports(1)[0])
    member = Member(folder, "bench", keep_warm=warm)
    watch = Watch(server)
    try:
        shutil.copytree(SHIPPED / POLICY, server.fleet.policies / POLICY)
        member.equip(SHIPPED / POLICY, await asyncio.to_thread(drawn, folder / "drawn", EPISODES))
        server.start()
        await server.ready()
        server.fleet.add_station("bench", member.enroll(server))
        member.start()
        await member.until(NodeState.ONLINE)
        await asyncio.sleep(SETTLED_S)
        waiting_bytes, before = watch.memory_bytes(), watch.cpu_s()
        await asyncio.sleep(WAITING_S)
        waited = [(after - since) / WAITING_S for since, after in zip(before, watch.cpu_s(), strict=True)]
        looking = asyncio.create_task(watch.look())
        await server.begin(
            RUN, policy=POLICY, num_server_rounds=rounds, local_steps=1, batch_size=8, adapter_rank=16,
            fraction_evaluate=0.0, min_available_nodes=1,
        )  # fmt: skip
        how = await server.over(RUN, RUN_S)
        looking.cancel()
        done = [each for each in server.rounds(RUN) if each["round"] > 0]
        return {
            "machine": machine(),
            "load": os.getloadavg()[0],
            "policy": POLICY,
            "keep_warm": warm,
            "run": how,
            "seconds": [each["seconds"] for each in done],
            "begun_at": [each["began_at"] for each in done],
            "bytes_from_station": [each["bytes_from_station"] for each in done],
            "waiting_mib": round(waiting_bytes / MIB),
            "peak_mib": round(watch.most_bytes / MIB),
            "trainer_peak_mib": member.federation.node.peak_mb,
            "cpu_waiting": {"fleet": round(waited[0], 4), "station": round(waited[1], 4)},
            "cpu_s_a_round": _cpu_a_round(watch.after_round),
        }
    except BaseException:
        sys.stderr.write(f"rounds so far: {server.rounds(RUN)}\n{member.log()}\n")
        raise
    finally:
        await member.stop()
        await asyncio.to_thread(server.stop)
        shutil.rmtree(folder, ignore_errors=True)


def show(seen: dict[str, Any], console: Console) -> None:
    first, *others = seen["seconds"]
    console.print(f"{seen['policy']}, one step a round, {'trainers kept warm' if seen['keep_warm'] else 'not warm'}:")
    console.print(f"first round {first:.1f} s, those after it {statistics.median(others or [first]):.1f} s (median)")
    console.print(
        f"MiB: {seen['waiting_mib']} while it waits, {seen['peak_mib']} at the peak of everything federated,\n"
        f"where what others have loaded, too, counts in part; a trainer by itself {seen['trainer_peak_mib']}"
    )
    console.print(f"cores while it waits: {seen['cpu_waiting']}; CPU seconds a round: {seen['cpu_s_a_round']}")


def _cpu_a_round(after_round: list[tuple[float, float]]) -> dict[str, float] | None:
    """CPU seconds of each side, without the first round; None where there was no other."""
    if len(after_round) < 2:
        return None
    first, last, count = after_round[0], after_round[-1], len(after_round) - 1
    return {
        "fleet": round((last[0] - first[0]) / count, 2),
        "station": round((last[1] - first[1]) / count, 2),
    }


def _share_bytes(pid: int) -> int:
    """A process's proportional share of memory; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
