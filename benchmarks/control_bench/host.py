"""What the kernel knows about processes: their CPU time, memory and children. Linux only."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
END_S: Final = 10.0


def children_of(pid: int) -> list[int]:
    """The process and all its live descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def cpu_s(pids: Iterable[int]) -> dict[int, float]:
    """User and system time of each process that lives, all threads and all children it waited for, in seconds."""
    used = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            used[pid] = sum(int(field) for field in _stat(pid)[11:15]) / TICKS_PER_S
    return used


def cpu_between(before: dict[int, float], after: dict[int, float]) -> float:
    """Seconds used from one reading of `cpu_s` to the next; a process that is new counts in full."""
    return sum(used - before.get(pid, 0.0) for pid, used in after.items())


def resident_mb(pid: int) -> float:
    """Resident memory of one process in MiB. Raises OSError when it is gone."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"process {pid} has no memory: it ended")


def command(pid: int) -> str:
    """The process's command line, shortened; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120]
    return ""


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on; the second may hold spaces (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def end(process: "subprocess.Popen[bytes] | None", timeout_s: float = END_S) -> None:
    """End a process this benchmark started: politely, then for sure."""
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_realtime(pid: int) -> bool:
    """Whether any thread of the process has real-time priority."""
    threads = [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
    return any(os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO for thread in threads)
