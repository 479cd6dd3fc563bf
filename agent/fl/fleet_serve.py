"""`so-agent fleet serve`: the SuperLink on loopback, the gate in front of it, and the list of stations that it knows.

The folder is the truth. A SuperLink that has ended is started anew with an empty memory and told again who may take
part; runs that it was at are submitted again and go on after their last round.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Callable
from typing import Final

import msgspec

from agent.errors import AgentError, BadInput, NotRunning, Refused
from agent.fl import certificates, fleet_runs, station_key
from agent.fl.fleet import Fleet, Serving
from agent.fl.fleet_control import Control
from agent.fl.launch import Launch, command
from agent.telemetry import logger

LOOPBACK: Final = "127.0.0.1"

BACKOFF_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
STABLE_S: Final = 60.0

READY_S: Final = 60.0
"""On a busy host a SuperLink takes ten seconds to import what it needs."""

SYNC_S: Final = 2.0
"""How soon a key that was put into the folder counts, or one that was taken out no longer does."""

TERMINATE_S: Final = 8.0
"""A SuperLink ends its server apps first, which takes them up to 5 s."""

ASK_S: Final = 0.5


class Server:
    """Serves one fleet until `stop` is called."""

    def __init__(self, fleet: Fleet, host: str, port: int) -> None:
        """Raises BadInput when the fleet's certificate has expired, or the address cannot be listened on."""
        self._fleet, self._host, self._port = fleet, host, port
        left = certificates.days_left(fleet.certificate)
        renew = f"so-agent fleet init {fleet.folder} --host ..."
        if left < 0:
            raise BadInput("The server's certificate has expired.", f"Make a new one: `{renew}`.")
        if left < certificates.RENEW_BEFORE_DAYS:
            logger.warning("the server's certificate expires soon", days=round(left), remedy=renew)
        _check_free(host, port)
        self._stop = asyncio.Event()
        self._control_port = 0
        self.superlink_starts = 0

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        """Until stopped. Raises Refused when the fleet is being served already."""
        with contextlib.suppress(NotRunning):
            pid = self._fleet.serving().pid
            raise Refused(f"The fleet is being served already (pid {pid}).", "Stop that one first.")
        try:
            work = asyncio.create_task(self._work())
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)
        finally:
            self._fleet.serving_file.unlink(missing_ok=True)

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep("superlink", self._superlink))
            group.create_task(self._keep("gate", self._gate))
            group.create_task(self._sync())

    def _superlink(self) -> list[str]:
        """On another port each time: the old one may not be free yet."""
        fleet = self._fleet
        self._control_port = _free_port()
        self.superlink_starts += 1
        return [
            "flower-superlink", "--host", LOOPBACK, "--port", str(self._control_port),
            "--ssl-ca-certfile", str(fleet.authority), "--ssl-certfile", str(fleet.certificate),
            "--ssl-keyfile", str(fleet.key), "--enable-supernode-auth", "--disable-runtime-dependency-installation",
        ]  # fmt: skip

    def _gate(self) -> list[str]:
        host = f"[{self._host}]" if ":" in self._host else self._host
        target = f"{LOOPBACK}:{self._control_port}"
        module = "agent.fl.fleet_gate"
        return [sys.executable, "-m", module, str(self._fleet.folder), f"{host}:{self._port}", target]

    async def _keep(self, name: str, words: Callable[[], list[str]]) -> None:
        """Keep one process running. The gate is started anew with each SuperLink, which is elsewhere then."""
        streak = 0
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            starts = self.superlink_starts
            with (self._fleet.folder / f"{name}.log").open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *command(Launch(tuple(words()))),
                    stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=self._fleet.environment(),
                    cwd=self._fleet.folder, start_new_session=True,
                )  # fmt: skip
            logger.info("started", what=name, pid=process.pid)
            try:
                code = await self._until_over(name, process, starts)
            finally:
                await _end(process)
            if code is None:
                continue  # the other half was replaced
            streak = 0 if loop.time() - started_s > STABLE_S else streak + 1
            wait_s = BACKOFF_S[min(streak, len(BACKOFF_S) - 1)]
            logger.error("ended by itself", what=name, status=code, log=f"{name}.log", again_in_s=wait_s)
            await asyncio.sleep(wait_s)

    async def _until_over(self, name: str, process: Process, starts: int) -> int | None:
        """Its exit status; None for a gate whose SuperLink is elsewhere now."""
        while process.returncode is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), ASK_S)
            if name == "gate" and self.superlink_starts != max(starts, 1):
                return None
        return process.returncode

    async def _sync(self) -> None:
        """Keep the SuperLink's list of stations what the folder says; submit interrupted runs again."""
        told = 0
        while True:
            starts, address = self.superlink_starts, f"{LOOPBACK}:{self._control_port}"
            try:
                if starts:
                    await asyncio.to_thread(_tell, self._fleet, address, starts != told)
                    if starts != told:
                        told = starts
                        self._announce(address)
            except NotRunning:
                pass  # it is still starting, or was just killed: there is a next time
            except AgentError as error:
                logger.error("the SuperLink was not told", problem=str(error))
            await asyncio.sleep(SYNC_S if starts == told else ASK_S)

    def _announce(self, address: str) -> None:
        host = f"[{self._host}]" if ":" in self._host else self._host
        serving = Serving(os.getpid(), address, f"{host}:{self._port}")
        new = self._fleet.serving_file.with_name(".serve.json.new")
        new.write_bytes(msgspec.json.encode(serving) + b"\n")
        new.replace(self._fleet.serving_file)
        logger.info("ready", stations=serving.address, members=len(self._fleet.members()))


def _tell(fleet: Fleet, address: str, anew: bool) -> None:
    """In a thread: the client blocks."""
    control = Control(fleet, address)
    try:
        members = {station_key.public_bytes(member.key): member for member in fleet.members()}
        known = {node.key: node for node in control.nodes()}
        for pem, member in members.items():
            if pem not in known:
                control.register(member.name, member.key)
                logger.info("station may take part", station=member.name)
        for pem, node in known.items():
            if pem not in members:
                control.unregister(node)
                logger.info("station may no longer take part", station=node.name)
        if anew:
            fleet_runs.go_on(fleet, control)
        fleet_runs.settle(fleet, control.runs())
    finally:
        control.close()


async def _end(process: Process) -> None:
    """Polite first. The whole group: a SuperLink that is killed would leave its executor behind for a moment."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), TERMINATE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _check_free(host: str, port: int) -> None:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise BadInput(f"Cannot listen on {host}:{port}: {error.strerror}.", "Give another --bind.") from error
