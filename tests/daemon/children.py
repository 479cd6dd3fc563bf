"""Tiny children for the supervisor's tests: they publish signs of life and end as they are told."""

import os
import signal
import time
from pathlib import Path

from agent.config import StationConfig


def _pause() -> None:
    while True:
        signal.pause()


def steady(config: StationConfig, log: str) -> None:
    """Note every start, then live for ever."""
    with Path(log).open("a") as file:
        file.write(f"{os.getpid()}\n")
    _pause()


def crashing(config: StationConfig, log: str) -> None:
    with Path(log).open("a") as file:
        file.write(f"{time.monotonic()}\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def crashing_until(config: StationConfig, log: str, well: str) -> None:
    """Crash, until a file is there."""
    if not Path(well).exists():
        crashing(config, log)
    _pause()


def absent(config: StationConfig, log: str) -> None:
    """A device that is not there: ends with the code for it, as often as it is asked."""
    with Path(log).open("a") as file:
        file.write(f"{time.monotonic()}\n")
    raise SystemExit(5)
