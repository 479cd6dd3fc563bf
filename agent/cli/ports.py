"""Serial ports: do they exist, may they be opened, and who holds them."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.finding import Finding, Level

if TYPE_CHECKING:
    from agent.config import StationConfig

MASTER = "/dev/ptmx"
"""Whoever has this open may be the one who made a pseudo-terminal: the other end, not a rival."""


@dataclass(frozen=True)
class Holder:
    """A process that has a port open."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command})"


def holders(port: Path) -> list[Holder]:
    """The processes that have `port` open, as far as this user may see them."""
    device = os.path.realpath(port)
    found: list[Holder] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        files = set(_open_files(folder))
        if device in files and not (device.startswith("/dev/pts/") and files & {MASTER, "/dev/pts/ptmx"}):
            found.append(Holder(int(folder.name), _command(folder)))
    return found


def _open_files(process: Path) -> Iterator[str]:
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:  # it has just ended, or belongs to somebody else
        return
    for descriptor in descriptors:
        try:
            yield os.readlink(descriptor)
        except OSError:
            continue


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "ended meanwhile"
    return words if len(words) <= 80 else f"{words[:77]}..."


def check_ports(config: "StationConfig", own_pids: frozenset[int] = frozenset()) -> list[Finding]:
    """One finding an arm. `own_pids` are processes of this very station, which may hold its ports."""
    arms = {"follower": config.robot.follower}
    if config.robot.leader:
        arms["leader"] = config.robot.leader
    return [_check_port(f"robot.{name}.port", arm.port, own_pids) for name, arm in arms.items()]


def _check_port(name: str, port: Path, own_pids: frozenset[int]) -> Finding:
    if not port.exists():
        return Finding(name, Level.ERROR, f"The port {port} does not exist.", _what_is_there(), "missing")
    if not stat.S_ISCHR(port.stat().st_mode):
        return Finding(name, Level.ERROR, f"{port} is not a serial port.", _what_is_there(), "not-a-port")
    others = [holder for holder in holders(port) if holder.pid not in own_pids]
    if others:
        return Finding(
            name,
            Level.ERROR,
            f"The port {port} is held by {', '.join(map(str, others))}.",
            "End that process: two programs on one servo bus make half of the reads fail.",
            "held",
        )
    if not os.access(port, os.R_OK | os.W_OK):
        return Finding(
            name,
            Level.ERROR,
            f"This user may not open the port {port}.",
            "Run `sudo usermod -aG dialout $USER`, then log in again.",
            "permission",
        )
    return Finding(name, Level.OK, str(port))


def _what_is_there() -> str:
    by_id = sorted(str(path) for path in Path("/dev/serial/by-id").glob("*"))
    if by_id:
        return f"Plugged in are: {', '.join(by_id)}."
    return (
        "No USB serial adapter is plugged in. For the virtual station, start `so-agent virtual-station -c FILE` first."
    )
