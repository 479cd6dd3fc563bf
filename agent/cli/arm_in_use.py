"""Whether somebody moves the arm right now, for commands that keep this computer busy."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from agent.api.local import EVENTS_SILENCE_S, RECONNECT_S, Client
from agent.errors import AgentError
from agent.modes import MOVING, Mode

USING: Final = MOVING | {Mode.STARTING, Mode.STOPPING}
"""The computer's time is theirs."""

TELLING: Final = ("mode", "task")
"""Kinds of events after which it may be otherwise."""


def in_use(status: dict[str, Any]) -> str | None:
    """Why the arm is in use; None while it rests."""
    if status.get("loading"):
        return f"a task is about to begin, with the policy {status['loading']}"
    return f"the arm is in mode {status['mode']}" if Mode(status["mode"]) in USING else None


class ArmInUse(threading.Thread):
    """Calls `on_change(why)` whenever it becomes otherwise. Without an agent the arm is not in use."""

    def __init__(self, socket: Path, on_change: Callable[[str | None], None]) -> None:
        super().__init__(name="whether the arm is in use", daemon=True)
        self._client = Client(socket)
        self._on_change = on_change
        self._why: str | None = None
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            try:
                self._look()
                self._client.call("events", {"follow": True}, EVENTS_SILENCE_S, self._heard)
            except AgentError:
                self._tell(None)
            self._over.wait(RECONNECT_S)

    def close(self) -> None:
        """Tell nothing more."""
        self._over.set()

    def _heard(self, told: dict[str, Any]) -> None:
        if told.get("event", {}).get("kind") in TELLING:
            self._look()

    def _look(self) -> None:
        self._tell(in_use(self._client.call("status")))

    def _tell(self, why: str | None) -> None:
        if why != self._why and not self._over.is_set():
            self._why = why
            self._on_change(why)
