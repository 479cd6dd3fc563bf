"""Tells the service manager how the station is, and that it lives: systemd's notification protocol, sd_notify(3).

The watchdog is fed only while the arm process makes progress. A daemon that hangs cannot feed it; one that runs
beside an arm that does not is no use either, and is not fed. Without a service manager nothing here does anything.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agent.clock import Clock, nanoseconds, seconds
from agent.modes import Mode
from agent.telemetry import logger

LOOK_S: Final = 0.5
"""How often is looked: soon enough for `systemctl status` to be worth reading."""

LOOKS_A_TIMEOUT: Final = 4
"""Signs of life within one watchdog time-out. systemd advises two; a busy host may swallow one."""

PATIENCE_S: Final = 60.0
"""How long the arm may be without progress. The supervisor kills an arm process that hangs after 1 s, one that hangs
while it starts after 20 s, and waits 10 s at most in between: this leaves it two attempts."""

STATUS_MAX_CHARS: Final = 300


class ServiceManager:
    """The other end of NOTIFY_SOCKET; None where nobody wants to know."""

    def __init__(self, address: str | None, watchdog_s: float | None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls) -> "ServiceManager":
        """Takes the variables out of the environment: child processes are not the ones that systemd asked."""
        address = os.environ.pop("NOTIFY_SOCKET", None)
        period_us = os.environ.pop("WATCHDOG_USEC", None)
        asked = os.environ.pop("WATCHDOG_PID", None)
        mine = asked is None or asked == str(os.getpid())
        return cls(address, int(period_us) / 1e6 if period_us and mine else None)

    def tell(self, **fields: str) -> None:
        """Send `READY="1"`, `STATUS="..."` and the like."""
        if self._address is None or not fields:
            return
        message = "\n".join(f"{key}={value}" for key, value in fields.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ours:
            try:
                ours.connect(self._address)
                ours.send(message.encode())
            except OSError as error:  # it restarts, or its queue is full; the next look says the same again
                logger.warning("the service manager does not listen", problem=str(error))


@dataclass(frozen=True)
class Vitals:
    """What one look at the station shows."""

    mode: Mode
    reason: str
    progress: object  # changes with every tick of the arm
    given_up: str | None = None  # why the arm process is not started again until a person asks for it


class Watchdog:
    """Judges each look, and passes on what the service manager should know."""

    def __init__(self, manager: ServiceManager, clock: Clock) -> None:
        self._manager = manager
        self._clock = clock
        self._ready = False
        self._status = ""
        self._progress: object = None
        self._progress_ns = clock.now_ns()
        self._starved = False

    @property
    def period_s(self) -> float:
        return min(LOOK_S, (self._manager.watchdog_s or LOOK_S * LOOKS_A_TIMEOUT) / LOOKS_A_TIMEOUT)

    async def run(self, look: Callable[[], Vitals]) -> None:
        """Until cancelled."""
        while True:
            self.judge(look())
            await asyncio.sleep(self.period_s)

    def judge(self, vitals: Vitals) -> None:
        """One look."""
        fields: dict[str, str] = {}
        if not self._ready and vitals.mode is not Mode.STARTING:
            self._ready = True
            fields["READY"] = "1"
        status = " ".join(f"{vitals.mode}: {vitals.reason}".split())[:STATUS_MAX_CHARS]
        if status != self._status:
            self._status = status
            fields["STATUS"] = status
        if vitals.mode is Mode.STOPPING:
            fields["STOPPING"] = "1"
        if self._makes_progress(vitals):
            fields["WATCHDOG"] = "1"
        self._manager.tell(**fields)

    def _makes_progress(self, vitals: Vitals) -> bool:
        now = self._clock.now_ns()
        # Parking has a time-out of its own, and an arm that was given up waits for a person, who needs the agent.
        excused = vitals.mode is Mode.STOPPING or vitals.given_up is not None
        if excused or vitals.progress != self._progress:
            self._progress, self._progress_ns, self._starved = vitals.progress, now, False
            return True
        silent_ns = now - self._progress_ns
        if silent_ns <= nanoseconds(PATIENCE_S):
            return True
        if not self._starved:
            self._starved = True
            logger.error("the arm makes no progress; the watchdog is not fed", silent_s=round(seconds(silent_ns), 1))
        return False
