"""Everything between a station and its fleet dies once, within a round: `python -m tests.fl.faults [NAME...]`.

For each fault, from its moment on: how long until the server's round was over, and what that got; how long until
another round, of another run, was done by the station. A station that does not come back, or a round that does not end,
fails the harness. A full disk needs root: the station's folder is a small one of its own then.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from agent.errors import AgentError
from agent.fl.node import NodeState
from tests.fl.bench import PATIENT_HASH, Member, Server, notes, until
from tests.station.live import free_ports

BACK_S: Final = 420.0
"""The longest wait between two looks for a fleet that was away is five minutes; another minute for the round."""

ROUND_S: Final = 240.0
SECONDS: Final = 20.0  # of training in a round
ALONGSIDE: Final = 3
AWAY_S: Final = 60.0
DISK: Final = "400m"
FULL: Final = "disk-full-60-s"


class Scene:
    """A fleet with one station in the middle of a round."""

    def __init__(self, folder: Path, small_disk: bool) -> None:
        self.folder = folder
        self.disk = folder / "kitchen" if small_disk else None
        if self.disk:
            self.disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", self.disk], check=True)
        self.server = Server(folder, free_ports(1)[0])
        self.member = Member(folder, "kitchen", apps=(PATIENT_HASH,), keep_warm=False)

    async def begin(self) -> Path:
        info = self.member.config.paths.dataset / "meta" / "info.json"
        info.parent.mkdir(parents=True)
        info.write_text("{}")
        self.member.federation.membership.give_consent("episodes", True)
        self.server.start()
        await self.server.ready()
        self.server.fleet.add_station("kitchen", self.member.enroll(self.server))
        self.member.start()
        await self.member.until(NodeState.ONLINE, timeout_s=180)
        output = await self.server.be_patient("fault", num_server_rounds=2, seconds=SECONDS, timeout_s=ROUND_S)
        await self.member.until(NodeState.WORKING, timeout_s=120)
        await until("the trainer waits", lambda: "Start `flwr-clientapp`" in self.member.log(), 120)
        return output

    async def end(self) -> None:
        await self.member.stop()
        await asyncio.to_thread(self.server.stop)
        if self.disk:
            await asyncio.to_thread(subprocess.run, ["umount", "--lazy", self.disk], check=True)

    @property
    def trainer(self) -> int:
        pid = self.member.federation.node.room.tenant()
        assert pid is not None
        return pid


async def supernode_killed(scene: Scene) -> None:
    for pid in scene.member.federation.node.room.pids():
        os.kill(pid, signal.SIGKILL)


async def superlink_killed(scene: Scene) -> None:
    os.kill(scene.server.pid_of("superlink"), signal.SIGKILL)


async def trainer_killed(scene: Scene) -> None:
    os.kill(scene.trainer, signal.SIGKILL)


async def trainer_stopped(scene: Scene) -> None:
    os.kill(scene.trainer, signal.SIGSTOP)


async def supernode_stopped(scene: Scene) -> None:
    pids = scene.member.federation.node.room.pids()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            os.kill(pid, number)
        if number is signal.SIGSTOP:
            await asyncio.sleep(AWAY_S)


async def network_gone(scene: Scene) -> None:
    gate = scene.server.pid_of("gate")
    os.kill(gate, signal.SIGSTOP)
    await asyncio.sleep(AWAY_S)
    os.kill(gate, signal.SIGCONT)


async def disk_full(scene: Scene) -> None:
    """To the last byte, whoever owns it."""
    assert scene.disk
    rest = scene.disk / "rest"
    with rest.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with rest.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b".")
    assert shutil.disk_usage(scene.disk).free == 0
    await asyncio.sleep(AWAY_S)
    rest.unlink()


async def server_gone(scene: Scene) -> None:
    """For so long that the SuperNode is given up; then it is back."""
    await asyncio.to_thread(scene.server.stop)
    node = scene.member.federation.node
    await until("nothing of it runs any more", lambda: node.state is NodeState.WAITING and not node.room.pids(), BACK_S)
    scene.server.start()


FAULTS: Final[dict[str, Callable[[Scene], Awaitable[None]]]] = {
    "server-gone": server_gone,  # the longest first
    "supernode-killed": supernode_killed,
    "superlink-killed": superlink_killed,
    "trainer-killed": trainer_killed,
    "trainer-stopped": trainer_stopped,
    "supernode-stopped-60-s": supernode_stopped,
    "network-gone-60-s": network_gone,
    FULL: disk_full,
}
FORGETS: Final = {"superlink-killed", "server-gone"}
"""The SuperLink's memory is empty then: this run is over, and `fleet serve` would begin it again."""


async def one(name: str, console: Console) -> tuple[str, ...]:
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))
    scene = Scene(folder, small_disk=name == FULL)
    try:
        output = await scene.begin()
        began_s = time.monotonic()
        await FAULTS[name](scene)
        round_s, got = "-", "(asked for again)"
        if name not in FORGETS:
            await until("the round is over", lambda: notes(output), ROUND_S + 60)
            round_s = f"{time.monotonic() - began_s:.0f}"
            note = notes(output)[0]
            got = f"{len(note['replies'])} replies, errors {note['errors']}"
        try:
            after = await asked_again(scene.server)
            await until("a round afterwards", lambda: notes(after), BACK_S)
            assert notes(after)[0]["errors"] == [], notes(after)
        except AssertionError:
            console.print(scene.member.log(), markup=False)
            raise
        return name, round_s, got, f"{time.monotonic() - began_s:.0f}"
    finally:
        await scene.end()
        shutil.rmtree(folder, ignore_errors=True)


async def asked_again(server: Server) -> Path:
    """Another run, of one round, as soon as the SuperLink takes one."""
    until_s = time.monotonic() + BACK_S
    while True:
        try:
            return await server.be_patient("after", num_server_rounds=1, seconds=0.5)
        except AgentError:  # it is starting
            if time.monotonic() > until_s:
                raise
            await asyncio.sleep(1.0)


async def all_of(names: list[str], console: Console) -> tuple[Table, int]:
    """Some at a time: each has a fleet of its own, and what they do most is wait."""
    table = Table("fault", "its round over, s", "which got", "another round done, s", box=None)
    turn = asyncio.Semaphore(ALONGSIDE)
    rows: dict[str, tuple[str, ...]] = {}
    failed = 0

    async def run(name: str) -> None:
        nonlocal failed
        async with turn:
            try:
                rows[name] = await one(name, console)
            except (AssertionError, AgentError) as error:
                failed += 1
                rows[name] = (name, "", str(error)[:300], "[red]never[/red]")
            console.print(*rows[name])

    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(run(name))
    for name in names:
        table.add_row(*rows[name])
    return table, failed


def main() -> int:
    console = Console(width=None if Console().is_terminal else 120)
    names = sys.argv[1:] or list(FAULTS)
    if FULL in names and os.geteuid() != 0:
        console.print(f"{FULL} is left out: only root can make a small disk.")
        names.remove(FULL)
    if unknown := set(names) - set(FAULTS):
        console.print(f"There is no fault {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}.")
        return 2
    table, failed = asyncio.run(all_of(names, console))
    console.print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
