"""Whether this machine's clock can be believed. A command that moves an arm must not be judged by a clock that is
wrong: a board without a battery boots years in the past, where nothing has expired yet.
"""

import asyncio
import ctypes
import errno
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_ERROR_S: Final = 2.0
"""systemd-timesyncd asks every 34 min, in which the kernel lets its bound of the error grow by 1 s (500 ppm)."""

ASK_EVERY_S: Final = 10.0
"""Between two looks: a clock that lost its server is not wrong a moment later."""

TIMEDATECTL_S: Final = 2.0

TIMESYNCD_STAMP: Final = Path("/run/systemd/timesync/synchronized")
TIMESYNCD_MAX_AGE_S: Final = 2 * 2048.0
"""Twice its longest time between two questions."""

TIME_ERROR: Final = 5  # <sys/timex.h>: the clock is not synchronised

US_PER_S: Final = 1_000_000


class Timex(ctypes.Structure):
    """`struct timex` of adjtimex(2), as far as it is read here; the rest is only room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),  # microseconds
        ("room", ctypes.c_byte * 256),
    )


@dataclass(frozen=True)
class Synchrony:
    """`reason` is a sentence for whoever was refused."""

    good: bool
    reason: str


def from_kernel() -> Synchrony | None:
    """What the kernel was told by chrony, ntpd, systemd-timesyncd or ptp. None where it may not be asked."""
    timex = Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    if state < 0:
        number = ctypes.get_errno()
        if number in (errno.EPERM, errno.ENOSYS):  # a service with ProtectClock=, some containers
            return None
        return Synchrony(False, f"The clock cannot be judged: {os.strerror(number)}.")
    error_s = timex.maxerror / US_PER_S
    if state == TIME_ERROR:
        return Synchrony(False, "This station's clock is not synchronised.")
    if error_s > MAX_ERROR_S:
        return Synchrony(False, f"This station's clock may be wrong by {error_s:.1f} s.")
    return Synchrony(True, f"within {error_s:.3f} s")


def from_timedatectl() -> Synchrony | None:
    """The same question through systemd, which asks the kernel for us. None where there is none."""
    try:
        answer = subprocess.run(
            ["timedatectl", "show", "--property=NTPSynchronized", "--value"],
            capture_output=True,
            text=True,
            timeout=TIMEDATECTL_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0:
        return None
    if answer.stdout.strip() == "yes":
        return Synchrony(True, "systemd says that it is synchronised")
    return Synchrony(False, "This station's clock is not synchronised.")


def from_timesyncd(stamp: Path = TIMESYNCD_STAMP) -> Synchrony | None:
    """The file that systemd-timesyncd touches at every synchronisation. None where it does not run."""
    try:
        age_s = time.time() - stamp.stat().st_mtime
    except OSError:
        return None
    if abs(age_s) <= TIMESYNCD_MAX_AGE_S:
        return Synchrony(True, f"systemd-timesyncd synchronised it {age_s:.0f} s ago")
    return Synchrony(False, f"This station's clock was synchronised {age_s / 3600:.1f} h ago.")


SOURCES: Final = (from_kernel, from_timedatectl, from_timesyncd)
"""The second and the third are for a service: ProtectClock= forbids the system call even to those who only ask."""


class Timekeeping:
    """Asks its sources in turn until one knows, every ASK_EVERY_S."""

    def __init__(
        self,
        sources: tuple[Callable[[], Synchrony | None], ...] = SOURCES,
        trusted: bool = False,
    ) -> None:
        """`trusted`: something that nobody here can ask keeps the clock right, e.g. a hypervisor."""
        self._sources: tuple[Callable[[], Synchrony | None], ...] = (_trusted,) if trusted else sources
        self.synchrony = Synchrony(False, "This station's clock was not looked at yet.")

    def look(self) -> None:
        """May take TIMEDATECTL_S."""
        self.synchrony = next(
            (answer for ask in self._sources if (answer := ask()) is not None),
            Synchrony(False, "Whether this station's clock is synchronised cannot be told."),
        )

    async def keep(self) -> None:
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(ASK_EVERY_S)


def _trusted() -> Synchrony:
    return Synchrony(True, "trusted by configuration")
