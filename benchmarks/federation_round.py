"""Whole rounds of a fleet of one, on loopback: see `python -m benchmarks.federation round`."""

import asyncio
import contextlib
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from agent.fl.base import SHIPPED
from agent.fl.node import NodeState
from agent.fl.synthetic import drawn
from benchmarks.control import machine
from benchmarks.control_bench.host import children_of
from benchmarks.control_bench.rig import free_ports
from tests.fl.bench import Member, Server

POLICY: Final = "demo-reach"
RUN: Final = "rounds"
MIB: Final = 2**20
EPISODES: Final = 6
RUN_S: Final = 600.0
LOOK_S: Final = 0.5
SETTLED_S: Final = 10.0
"""Of waiting for a round, before the memory of that is read: imports are over then."""


class Memory:
    """Of all processes that a station's federation starts. A page that several share is counted once."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.most = 0

    def now(self) -> int:
        """Bytes."""
        fleet = children_of(self._server.process.pid) if self._server.process else []
        found = sum(_share_bytes(pid) for pid in set(children_of(os.getpid())) - {os.getpid(), *fleet})
        self.most = max(self.most, found)
        return found

    async def watch(self) -> None:
        while True:
            await asyncio.to_thread(self.now)
            await asyncio.sleep(LOOK_S)


async def whole_rounds(rounds: int, warm: bool) -> dict[str, Any]:
    """JSON. Seconds are from asking the station to its reply, as the server notes them."""
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))  # Unix sockets need a short path
    server = Server(folder, free_ports(1)[0])
    member = Member(folder, "bench", keep_warm=warm)
    memory = Memory(server)
    try:
        shutil.copytree(SHIPPED / POLICY, server.fleet.policies / POLICY)
        member.equip(SHIPPED / POLICY, await asyncio.to_thread(drawn, folder / "drawn", EPISODES))
        server.start()
        await server.ready()
        server.fleet.add_station("bench", member.enroll(server))
        member.start()
        await member.until(NodeState.ONLINE)
        await asyncio.sleep(SETTLED_S)
        waiting = memory.now()
        watching = asyncio.create_task(memory.watch())
        await server.begin(
            RUN, policy=POLICY, num_server_rounds=rounds, local_steps=1, batch_size=8, adapter_rank=16,
            fraction_evaluate=0.0, min_available_nodes=1,
        )  # fmt: skip
        how = await server.over(RUN, RUN_S)
        watching.cancel()
        done = [each for each in server.rounds(RUN) if each["round"] > 0]
        return {
            "machine": machine(),
            "policy": POLICY,
            "keep_warm": warm,
            "run": how,
            "seconds": [each["seconds"] for each in done],
            "begun_at": [each["began_at"] for each in done],
            "bytes_from_station": [each["bytes_from_station"] for each in done],
            "waiting_mib": round(waiting / MIB),
            "peak_mib": round(memory.most / MIB),
            "trainer_peak_mib": member.federation.node.peak_mb,
        }
    finally:
        await member.stop()
        await asyncio.to_thread(server.stop)
        shutil.rmtree(folder, ignore_errors=True)


def show(seen: dict[str, Any], console: Console) -> None:
    first, *others = seen["seconds"]
    console.print(f"{seen['policy']}, one step a round, {'trainers kept warm' if seen['keep_warm'] else 'not warm'}:")
    console.print(f"first round {first:.1f} s, those after it {statistics.median(others or [first]):.1f} s (median)")
    console.print(
        f"MiB: {seen['waiting_mib']} while it waits, {seen['peak_mib']} at the peak of everything federated, "
        f"{seen['trainer_peak_mib']} of these at the peak of a trainer"
    )


def _share_bytes(pid: int) -> int:
    """A process's proportional share of memory; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
