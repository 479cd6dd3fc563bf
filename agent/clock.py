"""Clocks, injected wherever time matters, so that tests own time.

All times inside the agent are nanoseconds of CLOCK_MONOTONIC, which every process of one host shares.
Wall-clock time appears only in metadata written for people.
"""

import time
from typing import Protocol

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


class Clock(Protocol):
    """What the control loop and its friends need to know about time."""

    def now_ns(self) -> int:
        """Nanoseconds of a monotonic clock."""
        ...

    def wall_s(self) -> float:
        """Seconds since the epoch, for metadata only."""
        ...


class SystemClock:
    """The host's clocks."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wall_s(self) -> float:
        return time.time()


def seconds(ns: int) -> float:
    return ns / NS_PER_S


def nanoseconds(s: float) -> int:
    return round(s * NS_PER_S)
