"""Where SuperNode and trainer live: a control group of their own where the kernel gives one, process groups where not.

NODE/            memory limit, last in line for processor and disk
NODE/trainer/    what is frozen when the arm is needed; the SuperNode outside goes on telling the fleet that it is there

Freezing is one write and does not wait. A process that enters a frozen group is frozen, too.
"""

import contextlib
import hashlib
import os
import signal
from pathlib import Path
from typing import Final

import msgspec

from agent.telemetry import logger

AGENT: Final = "agent"
"""The group of everything that is not federated. A group with processes in it cannot pass controllers on to others."""

DELEGATED: Final = "user.delegate"
"""What systemd notes on a group that is its service's own to divide."""

CONTROLLERS: Final = ("memory", "io")
"""Not the processor's: SCHED_IDLE does the same, and with RT_GROUP_SCHED the arm would lose its real-time."""

PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Tenant(msgspec.Struct, frozen=True):
    """What a trainer writes about itself as soon as it runs."""

    pid: int
    born: int  # clock ticks since boot, from /proc: a pid may be used again


class Room:
    """One for each station. Nothing here raises: what cannot be had is left out, and said in `limits`."""

    def __init__(self, station: str, state: Path, memory_max_bytes: int, tenant_file: Path) -> None:
        """`tenant_file` is where a trainer says who it is."""
        # Several agents may run on one machine, as in a test or a class room.
        self._name = f"so-agent-fl-{station}-{hashlib.sha256(str(state).encode()).hexdigest()[:8]}"
        self._tenant_file = tenant_file
        self.memory_max_bytes = memory_max_bytes
        self.node: Path | None = None
        self.trainer: Path | None = None
        self.limits: list[str] = []
        self._node_pid: int | None = None
        self._frozen = False

    def open(self) -> None:
        """Make the groups, empty. Without a place for them there are none."""
        base = _base()
        if base is None:
            return
        try:
            node = base / self._name
            (node / "trainer").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.info("no control group for federation", reason=str(error))
            return
        self.node, self.trainer = node, node / "trainer"
        _write(self.trainer / "cgroup.freeze", "0")  # of an agent that was killed
        _write(node / "cgroup.kill", "1")
        _divide(base)
        limits = (("memory.max", str(self.memory_max_bytes), "memory"), ("io.weight", "1", "disk"))
        self.limits = [meaning for file, value, meaning in limits if _write(node / file, value)]

    @property
    def kind(self) -> str:
        return "control group" if self.trainer else "process group"

    def enter(self, node_pid: int) -> None:
        """The SuperNode that lives here now."""
        self._node_pid = node_pid

    def tenant(self) -> int | None:
        """The trainer's pid; None when none runs."""
        try:
            tenant = msgspec.json.decode(self._tenant_file.read_bytes(), type=Tenant)
        except (OSError, msgspec.DecodeError):
            return None
        return tenant.pid if born(tenant.pid) == tenant.born else None

    def freeze(self) -> None:
        """From now on the trainer takes no time. At once, and without waiting."""
        if self.trainer:
            self._frozen = _write(self.trainer / "cgroup.freeze", "1")
        elif pid := self.tenant():
            self._frozen = _signal_group(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        if self.trainer:
            _write(self.trainer / "cgroup.freeze", "0")
        elif pid := self.tenant():
            _signal_group(pid, signal.SIGCONT)
        self._frozen = False

    @property
    def frozen(self) -> bool:
        return self._frozen

    def ask_to_end(self) -> None:
        """The trainer replies that it was busy, and ends."""
        if pid := self.tenant():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def end_trainer(self) -> None:
        """Without asking."""
        if self.trainer:
            _write(self.trainer / "cgroup.kill", "1")
        if pid := self.tenant():
            _signal_group(pid, signal.SIGKILL)
        self.thaw()

    def clear(self) -> None:
        """Nothing that lived here lives on."""
        self.end_trainer()
        if self.node:
            _write(self.node / "cgroup.kill", "1")
        if self._node_pid:
            _signal_group(self._node_pid, signal.SIGKILL)
            self._node_pid = None

    def close(self) -> None:
        """Nothing that lived here lives on, and the groups are gone. One that is not empty yet stays for the next."""
        self.clear()
        for group in (self.trainer, self.node):
            if group:
                with contextlib.suppress(OSError):
                    group.rmdir()
        self.node = self.trainer = None

    def used_bytes(self) -> int:
        """Memory of all that lives here; a page that several share is counted once."""
        if self.node and (current := _read(self.node / "memory.current")):
            return int(current)
        return sum(_resident(pid) for pid in self.pids())

    def pids(self) -> list[int]:
        if self.node and self.trainer:
            text = f"{_read(self.node / 'cgroup.procs')}\n{_read(self.trainer / 'cgroup.procs')}"
            return [int(word) for word in text.split()]
        sessions = {pid for pid in (self._node_pid, self.tenant()) if pid}
        return [pid for pid in _all_pids() if _session(pid) in sessions]


def born(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0 when there is none, or only its zombie."""
    fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 and fields[0] != "Z" else 0


def _base() -> Path | None:
    """The control group below which groups may be made; None where there is none."""
    mount = next((Path(line.split()[1]) for line in _read(Path("/proc/self/mounts")).splitlines()
                  if line.split()[2] == "cgroup2"), None)  # fmt: skip
    own = next((line[3:] for line in _read(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::")), None)
    if mount is None or own is None:
        return None
    base = mount / own.lstrip("/")
    if base.name == AGENT:
        base = base.parent
    # Entering a group takes the right to write where both have their common root.
    return base if os.access(base / "cgroup.procs", os.W_OK) and os.access(base, os.W_OK) else None


def _divide(base: Path) -> None:
    """Let groups below have limits of their own, where the service manager gave us the group for that."""
    try:
        if os.getxattr(base, DELEGATED) != b"1":
            return
        (base / AGENT).mkdir(exist_ok=True)
        for word in (base / "cgroup.procs").read_text().split():
            _write(base / AGENT / "cgroup.procs", word)  # one that has just ended is no harm
    except OSError:
        return
    for controller in CONTROLLERS:
        _write(base / "cgroup.subtree_control", f"+{controller}")


def _write(path: Path, value: str) -> bool:
    try:
        path.write_text(value)
    except OSError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _signal_group(pid: int, number: signal.Signals) -> bool:
    """To the group that `pid` leads. Both SuperNode and trainer lead one."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _stat(pid: int) -> list[str]:
    """From the third field on: the second, a name, may hold anything."""
    return _read(Path(f"/proc/{pid}/stat")).rpartition(") ")[2].split()


def _session(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[3]) if len(fields) > 3 else 0


def _resident(pid: int) -> int:
    """A process's proportional share of memory; all that it sees where the kernel does not tell that."""
    for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    words = _read(Path(f"/proc/{pid}/statm")).split()
    return int(words[1]) * PAGE if len(words) > 1 else 0


def _all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
