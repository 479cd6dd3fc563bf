"""Become another program, with as little of the computer as it may have: `python -m agent.fl.launch LAUNCH`.

What is set here is inherited by all that the program starts. A process of its own sets it, so that the daemon need not
run code between fork and exec.
"""

import ctypes
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec

from agent import priority

PR_SET_PDEATHSIG: Final = 1
PR_SET_NO_NEW_PRIVS: Final = 38

IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "armv7l": 314, "riscv64": 30}
IOPRIO_CLASS_IDLE: Final = 3 << 13
IOPRIO_WHO_PROCESS: Final = 1


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be run, and how."""

    command: tuple[str, ...]
    idle: bool = False  # only time, disk and memory that nobody else wants
    cgroup: str | None = None  # folder of the control group to enter


def command(launch: Launch) -> list[str]:
    """The words to start it with."""
    return [sys.executable, "-m", "agent.fl.launch", msgspec.json.encode(launch).decode()]


def step_back() -> None:
    """Lowest priority for processor and disk, first to go when memory runs out. Children inherit it."""
    priority.step_back()
    if number := IOPRIO_SET.get(platform.machine()):
        # Not fatal where the kernel does not know it: the disk is then shared as among equals.
        ctypes.CDLL(None, use_errno=True).syscall(number, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE)


def end_with_parent() -> None:
    """SIGTERM when whoever started us is gone, and no rights by set-user-id programs ever after."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:  # it went away before the call above
        os.kill(os.getpid(), signal.SIGTERM)


def become(launch: Launch) -> None:
    """Does not return."""
    if launch.cgroup:
        Path(launch.cgroup, "cgroup.procs").write_text(str(os.getpid()))
    if launch.idle:
        step_back()
    end_with_parent()
    os.execvp(launch.command[0], list(launch.command))  # noqa: S606


if __name__ == "__main__":
    become(msgspec.json.decode(sys.argv[1], type=Launch))
