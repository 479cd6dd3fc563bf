"""The daemon: takes the state folder, answers the socket, runs the station until told to stop."""

import asyncio
import contextlib
import faulthandler
import fcntl
import os
import signal
import stat
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

from agent import delegation
from agent.api import local
from agent.clock import SystemClock
from agent.config import StationConfig
from agent.errors import BadInput
from agent.fl.federation import Federation
from agent.station import Station
from agent.telemetry import configure, logger
from agent.watchdog import ServiceManager, Vitals, Watchdog


def run(config: StationConfig) -> None:
    """Run the agent in this process until SIGTERM, SIGINT or a shutdown request."""
    configure(config.logging, process="agent")
    delegation.enter()
    faulthandler.enable()  # an agent that the watchdog ends says where it hung
    with _state_folder(config.paths.state, config.paths.lock):
        asyncio.run(_serve(config))


async def _serve(config: StationConfig) -> None:
    station = Station(config, SystemClock(), Federation)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, station.stop_requested.set)
    async with local.serve(config.paths.agent_socket, station.handle, socket_mode(config.paths.run, os.environ)):
        logger.info("agent started", station=config.station, socket=str(config.paths.agent_socket), pid=os.getpid())
        async with _watched(station):
            await station.run()
    logger.info("agent stopped")


def socket_mode(folder: Path, environment: Mapping[str, str]) -> int:
    """Who may ask the agent: its own account; and the group, where a service manager has made the folder for one."""
    made = [Path(path) for path in environment.get("RUNTIME_DIRECTORY", "").split(":")]
    if folder not in made:
        return local.OWNER_ONLY
    for_a_group = folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH) == stat.S_IXGRP
    return local.OWNER_AND_GROUP if for_a_group else local.OWNER_ONLY


@contextlib.asynccontextmanager
async def _watched(station: Station) -> AsyncIterator[None]:
    """The service manager is told how the station is. Should this end early, its watchdog is not fed any more."""
    watchdog = Watchdog(ServiceManager.from_environment(), SystemClock())
    task = asyncio.create_task(watchdog.run(lambda: _vitals(station)), name="watchdog")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _vitals(station: Station) -> Vitals:
    return Vitals(
        station.machine.mode,
        station.machine.reason,
        progress=station.links.tick and (station.links.tick.seq, station.links.tick.due_ns),
        given_up=station.supervisor.children["arm"].failed,
    )


@contextlib.contextmanager
def _state_folder(folder: Path, lock: Path) -> Iterator[None]:
    """Own the state folder. Raises BadInput when it cannot be written or another agent has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadInput(
            f"Cannot write in the state folder {folder}: {error.strerror}.",
            "Make it writable, or set another state_dir (SO_AGENT__STATE_DIR).",
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode().strip() or "unknown"
            raise BadInput(
                f"Another agent (pid {holder}) already runs on the state folder {folder}.",
                "Stop that one, or give this one another state_dir.",
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)  # closing is what releases the lock, also when the process is killed
