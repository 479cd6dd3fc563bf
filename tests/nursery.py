"""The product's nursery, for tests that want one of its children and no agent around it.

Never a fork of the test process itself: that one has run other tests, and holds whatever threads and locks their
libraries keep. A child of such a process may hang before its first line.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agent.config import StationConfig
from agent.nursery import MAX_REQUEST_BYTES

ARM = "agent.robot.arm"
RECORDER = "agent.robot.recording.process"
CAMERA = "agent.robot.camera"

READY_S = 120.0
"""It imports lerobot: 4 s, or more on a machine that does other things, too."""

ROOT = Path(__file__).resolve().parents[1]


class Child:
    """A process that the nursery has forked."""

    def __init__(self, nursery: "Nursery", pid: int) -> None:
        self.pid = pid
        self._nursery = nursery

    def ended(self, within_s: float = 10) -> int:
        """Its exit status, -N for signal N. Fails the test when it does not end in time."""
        deadline = time.monotonic() + within_s
        while (status := self._nursery.statuses.get(self.pid)) is None:
            if time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"process {self.pid} did not end within {within_s} s")
            self._nursery.listen(deadline - time.monotonic())
        return status

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Also when it has ended already."""
        self._nursery.listen(0)
        if self.pid not in self._nursery.statuses:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.ended()


class Nursery:
    """One `agent.nursery` process. What its children print is in `log`."""

    def __init__(self, log: Path, *preload: str) -> None:
        self.log = log
        self.statuses: dict[int, int] = {}
        self._peer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.closing(theirs), log.open("ab") as out:
            fd = theirs.fileno()
            command = [sys.executable, "-m", "agent.nursery", str(fd), *preload]
            env = os.environ | {"HF_HUB_OFFLINE": "1"}
            self._process = subprocess.Popen(command, pass_fds=(fd,), stdout=out, stderr=out, cwd=ROOT, env=env)
        assert self._next(READY_S) == {"event": "ready"}, self.log.read_text()

    def spawn(
        self, name: str, entry: str, config: StationConfig, *, orphan_stays: bool = False, **kwargs: Any
    ) -> Child:
        """`entry` is "module:function", and is called with the configuration and `kwargs`."""
        request = {
            "op": "spawn",
            "name": name,
            "entry": entry,
            "config": config.model_dump(mode="json"),
            "kwargs": kwargs,
            "orphan_stays": orphan_stays,
        }
        self._peer.send(json.dumps(request).encode())
        while (event := self._next(READY_S))["event"] != "spawned":
            self._note(event)
        self.statuses.pop(event["pid"], None)  # of a child before it that had the same number
        return Child(self, event["pid"])

    def listen(self, for_s: float) -> None:
        """To how a child ends, for no longer than that."""
        with contextlib.suppress(TimeoutError, BlockingIOError):
            self._note(self._next(max(0.0, for_s)))

    def close(self) -> None:
        """Its children end with it."""
        self._peer.close()
        self._process.wait(timeout=READY_S)

    def _note(self, event: dict[str, Any]) -> None:
        self.statuses[event["pid"]] = event["status"]

    def _next(self, within_s: float) -> dict[str, Any]:
        self._peer.settimeout(within_s)
        event: dict[str, Any] = json.loads(self._peer.recv(MAX_REQUEST_BYTES))
        return event
