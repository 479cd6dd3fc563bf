"""Find the station that a command is about: by socket, by configuration, or because only one runs."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import BadInput, NotRunning

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.config import StationConfig

STATE_ROOT = Path("~/.local/state/so-agent")
"""Where the shipped configurations put their state folders, one a station."""

SERVICE_ROOT = Path("/run/so-agent")
"""Where stations that systemd runs have their sockets; members of the group so-agent may enter."""

AGENT_SOCKET = "agent.sock"
ARM_SOCKET = "arm.ctl"
VIRTUAL_SOCKET = "virtual.sock"

HOW_TO_NAME = "Name the station with `-c FILE` (or SO_AGENT_CONFIG), or its socket with `--socket PATH`."


def answers(path: Path) -> bool:
    """Whether a process listens on a Unix socket. A process that hangs or is stopped still listens."""
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(0.5)
            peer.connect(str(path))
    except OSError:
        return False
    return True


def known_run_dirs() -> Iterator[Path]:
    """The socket folders of all stations at the usual places: those of this user, and those that are services."""
    yield from sorted(STATE_ROOT.expanduser().glob("*/run"))
    yield from sorted(SERVICE_ROOT.glob("*"))


def _the_only(name: str, what: str) -> Path:
    running = [folder / name for folder in known_run_dirs() if answers(folder / name)]
    match running:
        case [only]:
            return only
        case [] if closed := [folder for folder in known_run_dirs() if not os.access(folder, os.X_OK)]:
            raise NotRunning(
                f"No {what} was found, but this user may not look into {', '.join(map(str, closed))}.",
                "Join the group that may operate the arm: `sudo usermod -aG so-agent $USER`, then log in again.",
            )
        case []:
            raise NotRunning(f"No {what} runs below {STATE_ROOT} or {SERVICE_ROOT}.", HOW_TO_NAME)
        case _:
            raise BadInput(f"More than one {what} runs: {', '.join(map(str, running))}.", HOW_TO_NAME)


class Station:
    """The station that the options name."""

    config: str | None = None
    socket: str | None = None
    loaded: "StationConfig | None" = None

    def load(self) -> "StationConfig":
        """The configuration that was named. Raises BadInput when none was, or when it is wrong."""
        if not self.config:
            raise BadInput("No configuration was named.", "Give `-c FILE`, or set SO_AGENT_CONFIG.")
        from agent.config import load

        self.loaded = load(Path(self.config).expanduser())
        return self.loaded

    def agent_socket(self) -> Path:
        """The agent's socket. Raises NotRunning when nothing names it and not exactly one agent runs."""
        if self.socket:
            return Path(self.socket).expanduser()
        if self.config:
            return self.load().paths.agent_socket
        return _the_only(AGENT_SOCKET, "agent")

    def virtual_socket(self) -> Path:
        """The control socket of the virtual station, found in the same way."""
        if self.socket:
            return Path(self.socket).expanduser().with_name(VIRTUAL_SOCKET)
        if self.config:
            return self.load().paths.virtual_ctl
        return _the_only(VIRTUAL_SOCKET, "virtual station")

    def arm_sockets(self) -> list[Path]:
        """The arm processes' own sockets. Of every arm that is found when no station was named: an
        emergency stop that asks which arm was meant comes too late."""
        if self.socket:
            return [Path(self.socket).expanduser().with_name(ARM_SOCKET)]
        if self.config:
            return [self.load().paths.arm_ctl]
        return [folder / ARM_SOCKET for folder in known_run_dirs() if answers(folder / ARM_SOCKET)]

    def call(
        self,
        verb: str,
        args: dict[str, Any] | None = None,
        timeout_s: float | None = 10.0,
        on_progress: "Callable[[dict[str, Any]], None] | None" = None,
    ) -> dict[str, Any]:
        """Ask the running agent. Raises NotRunning, or what the agent answered."""
        from agent.api.local import Client

        return Client(self.agent_socket()).call(verb, args, timeout_s, on_progress)
