"""One life of a `flower-supernode`: its folders, its environment, its output, its end."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import stat
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from agent.config import Federation
from agent.fl import brief, runner, shelter
from agent.fl.diary import Diary
from agent.fl.environment import quiet
from agent.fl.launch import Launch, command
from agent.fl.membership import Membership
from agent.fl.room import Room
from agent.fl.runner import Rules
from agent.fl.shelter import Found

STOP_S: Final = 6.0
"""A SuperNode says goodbye and is gone within 2.5 s; at idle priority it may have to wait for the processor."""

SIGN_OFF_S: Final = 20.0
"""Flower's imports and one request."""

LOOK_S: Final = 60.0
"""For a small process to start on a busy computer."""

LINE_BYTES: Final = 64 * 1024
"""Of what it prints. An app may print anything."""

LOG_BYTES: Final = 1_000_000

PROGRAMS: Final = ("flwr-clientapp", "flwr-agentapp", "flwr-connector", "flwr-model", "flwr-serverapp")
"""What a SuperNode would start for a message. All of them are ours, and only the first runs anything."""


class Folders:
    """Below `state_dir/federation`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.flower = home / "flower"  # FLWR_HOME of the SuperNode
        self.programs = home / "bin"
        self.work = home / "work"  # what station and trainer tell each other
        self.scratch = home / "scratch"  # the trainer's own; emptied with each session
        self.candidates = home / "candidates"
        self.flag = self.work / "arm-is-needed"
        self.brief = self.work / "brief.json"
        self.rules = self.work / "rules.json"
        self.tenant = self.work / "trainer.json"
        self.warm = self.work / "warm"
        self.progress = self.scratch / "progress.json"
        self.privacy = home / "privacy"
        self.ledger = self.privacy / "ledger.json"
        self.log = home / "supernode.log"

    def renew(self, settings: Federation, cgroup: Path | None) -> None:
        """Ready for a new session; what was left of the last is removed. Raises OSError."""
        for gone in (self.tenant, self.flag, self.warm):
            gone.unlink(missing_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)
        theirs = (self.scratch, self.candidates, self.privacy)  # trainers write there
        for folder in (self.flower, self.programs, self.work, *theirs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        other = shelter.user()
        if other:
            self._give(theirs, other)
        for name in PROGRAMS:
            path = self.programs / name
            path.write_text(f"#!{sys.executable}\nfrom agent.fl.runner import main\n\nmain()\n", encoding="utf-8")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        warm = str(self.warm) if settings.keep_warm else None
        group = str(cgroup) if cgroup else None
        rules = Rules(str(self.tenant), settings.apps, group, warm, *(other or (None, None)))
        brief.replace(self.rules, rules)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))

    def _give(self, folders: Iterable[Path], owner: tuple[int, int]) -> None:
        """To the user that trainers are, who may also look up what is said to them. Keys stay closed by themselves."""
        for folder in folders:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, *owner, follow_symlinks=False)
        self.home.chmod(0o711)
        self.work.chmod(0o755)


class SuperNode:
    """Started once, ended once."""

    def __init__(self, folders: Folders, room: Room, heard: Callable[[], None]) -> None:
        """`heard` is called when it has said something."""
        self._folders, self._room, self._heard = folders, room, heard
        self._process: Process | None = None
        self._warm: Process | None = None
        self._warm_since = 0
        self._reading: asyncio.Task[None] | None = None
        self._environment: dict[str, str] = {}
        self.diary = Diary()

    async def look_inside(self) -> Found:
        """What a trainer could reach. Raises OSError."""
        words = (sys.executable, "-m", "agent.fl.shelter")
        process = await asyncio.create_subprocess_exec(
            *command(Launch(words, idle=True)), stdin=DEVNULL, stdout=PIPE, env=self._surroundings(),
            cwd=self._folders.work, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = await asyncio.wait_for(process.communicate(), LOOK_S)
            return msgspec.json.decode(output, type=Found)
        except (TimeoutError, msgspec.DecodeError):
            return Found("?", 0, (), "a trainer cannot be started here: see the agent's log")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def start(self, superlink: str, membership: Membership) -> None:
        """Raises OSError."""
        folders = self._folders
        words = (
            "flower-supernode", "--superlink", superlink,
            "--root-certificates", str(membership.authority),
            "--auth-supernode-private-key", str(membership.key),
            "--host", "127.0.0.1", "--port", str(_free_port()),
        )  # fmt: skip
        environment = self._environment = self._surroundings()
        group = self._room.node
        launch = Launch(words, idle=True, cgroup=str(group) if group else None)
        # A session of its own: it and what it starts can be ended as one.
        self._process = await asyncio.create_subprocess_exec(
            *command(launch), stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, env=environment, cwd=folders.work,
            start_new_session=True, limit=LINE_BYTES,
        )  # fmt: skip
        self._room.enter(self._process.pid)
        self._reading = asyncio.create_task(self._read(self._process), name="supernode output")

    def _surroundings(self) -> dict[str, str]:
        folders = self._folders
        environment = quiet(folders.flower)
        return environment | {
            "PATH": f"{folders.programs}{os.pathsep}{environment['PATH']}",
            brief.VARIABLE: str(folders.brief),
            runner.VARIABLE: str(folders.rules),
            # Whatever a library wants to keep in its user's home, it may lose.
            "HOME": str(folders.scratch),
            "HF_HOME": str(folders.scratch / "hf"),
            "TMPDIR": str(folders.scratch),
            "TORCHINDUCTOR_CACHE_DIR": str(folders.scratch / "inductor"),
        }

    async def warm_up(self) -> None:
        """From now on trainers begin without imports. That it does not work costs only time.

        One that has ended (it is the first to go when memory runs out) is started again after the next reply, not at
        once: what killed it may still hold.
        """
        if self._warm is not None and (self.warm_pid or self.diary.sent == self._warm_since):
            return
        self._warm_since = self.diary.sent
        group = self._room.trainer
        words = (sys.executable, "-m", "agent.fl.warm", str(self._folders.warm))
        launch = Launch(words, idle=True, cgroup=str(group) if group else None)
        with self._folders.log.open("ab") as log:
            self._warm = await asyncio.create_subprocess_exec(
                *command(launch), stdin=DEVNULL, stdout=log, stderr=log, env=self._environment,
                cwd=self._folders.work, start_new_session=True,
            )  # fmt: skip

    @property
    def warm_pid(self) -> int | None:
        """Of the process that has the imports done; None where none runs."""
        return self._warm.pid if self._warm and self._warm.returncode is None else None

    async def cool_down(self) -> None:
        """Give back the memory of it."""
        if self._warm is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._warm.kill()
        await self._warm.wait()
        self._warm = None
        self._folders.warm.unlink(missing_ok=True)

    async def sign_off(self, superlink: str, membership: Membership, node: int) -> None:
        """For a SuperNode that was killed. That it does not work is no harm: the fleet forgets it within a minute."""
        words = (
            sys.executable, "-m", "agent.fl.sign_off", superlink, str(membership.authority), str(membership.key),
            str(node),
        )  # fmt: skip
        with self._folders.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command(Launch(words, idle=True)), stdin=DEVNULL, stdout=log, stderr=log,
                env=quiet(self._folders.flower),
            )  # fmt: skip
        try:
            await asyncio.wait_for(process.wait(), SIGN_OFF_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def code(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.returncode if self._process else None

    async def wait(self) -> None:
        if self._process:
            await self._process.wait()

    def pause(self) -> None:
        """It stands still until it is asked to stop. The fleet takes it for alive for 30 s at least."""
        self._signal(signal.SIGSTOP)

    def ask_to_stop(self) -> None:
        """It tells the fleet that it leaves, and ends."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process and self._process.returncode is None:
            # Not `send_signal`: it looks whether the process has ended, and takes its status away from asyncio.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def end(self) -> bool:
        """Gone when this returns, with all that it started. Whether it had said goodbye."""
        polite = True
        if self._process and self._process.returncode is None:
            self.ask_to_stop()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_S)
            polite = self._process.returncode is not None
        await self.cool_down()
        self._room.clear()
        await self.wait()
        if self._reading:
            with contextlib.suppress(TimeoutError):  # a stray child may still hold the pipe
                await asyncio.wait_for(self._reading, 1.0)
        return polite

    async def _read(self, process: Process) -> None:
        """What it prints goes into a file for people, and into the diary."""
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        with self._folders.log.open("ab") as log:
            while True:
                try:
                    line = await process.stdout.readline()
                except ValueError:  # longer than LINE_BYTES: nothing that is looked for, and the pipe must not stop
                    continue
                if not line:
                    return
                self.diary.hear(line.decode(errors="replace"))
                self._heard()
                with contextlib.suppress(OSError):  # a full disk must not stop the pipe
                    log.write(line)
                    log.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
