"""A daemon that answers on a real socket, without an arm behind it; and commands to send."""

import asyncio
import contextlib
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.api import local
from agent.errors import Refused

MOTION = ("task.start", "teleop.start", "park", "release")


class FakeDaemon:
    """What the surface needs of a daemon. `calls` is everything it was asked to do."""

    def __init__(self) -> None:
        self.mode, self.reason = "idle", "parked"
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.events: list[dict[str, Any]] = []
        self.more = asyncio.Condition()
        self.answer: dict[str, Any] | Exception | None = None
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.recording: dict[str, Any] | None = None
        self.last_task: str | None = None
        self._seq = itertools.count(1)

    @contextlib.asynccontextmanager
    async def serve(self, path: Path) -> AsyncIterator[None]:
        async with local.serve(path, self.handle):
            yield

    async def happen(self, text: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
        at = "2026-11-26T00:00:00.000+00:00"
        event = {"seq": next(self._seq), "at": at, "kind": "mode", "text": text, "data": data or {}}
        self.events.append(event)
        async with self.more:
            self.more.notify_all()
        return event

    async def become(self, mode: str, reason: str = "for a test") -> None:
        self.mode, self.reason = mode, reason
        await self.happen(f"{mode}: {reason}")

    async def handle(self, verb: str, args: dict[str, Any], progress: local.Progress) -> dict[str, Any]:
        args = dict(args)
        args.pop("via", None)
        match verb:
            case "status":
                return self.status()
            case "events":
                await self._follow(args["since"], progress)
            case "alive":
                return {}
        self.calls.append((verb, args))
        self.asked.set()
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        match verb:
            case "hold":
                await self.become("hold", "hold was asked for")
            case "lease.take":
                return {"token": "the-token", "owner": args["owner"], "ttl_s": args["ttl_s"]}
            case "record.start":
                self.recording = {
                    "task": args["task"], "source": "teleop", "phase": "episode", "episode": 1, "episodes": 1,
                    "frames": 0, "seconds": 0.0, "repeats": {}, "committed": 0,
                }  # fmt: skip
            case "record.stop":
                self.recording = None
            case "teleop.start":
                raise Refused("Not possible in mode estop: somebody pressed it.", "Reset it.")
            case "task.start":
                for step in range(3):
                    await progress({"loading": step})
        return {"mode": self.mode, "reason": self.reason}

    async def _follow(self, since: int, progress: local.Progress) -> None:
        while True:
            for event in [event for event in self.events if event["seq"] > since]:
                await progress({"event": event})
                since = event["seq"]
            async with self.more:
                try:
                    await asyncio.wait_for(self.more.wait(), 2.0)
                except TimeoutError:
                    await progress({"last": since})

    def more_status(self) -> dict[str, Any]:
        recorder = {
            "state": "ready", "reason": "", "task": None, "frames": 0, "seconds": 0.0, "episodes": 3, "salvaged": 0,
            "free_bytes": 40 * 10**9, "dataset": "episodes",
            "last": {"task": self.last_task} if self.last_task else None,
        }  # fmt: skip
        return {"recorder": recorder, "recording": self.recording}

    def moved(self) -> list[str]:
        return [verb for verb, _ in self.calls if verb in MOTION]

    def status(self) -> dict[str, Any]:
        nothing = (
            "lease",
            "loading",
            "recording",
            "task",
            "last_task",
            "arm",
            "servos",
            "cameras",
            "recorder",
            "policy",
            "federation",
        )
        about = {"station": "test", "version": "0.1.0", "config_hash": "0" * 12, "uptime_s": 1.0, "children": {}}
        return {**about, "mode": self.mode, "reason": self.reason, **dict.fromkeys(nothing)} | self.more_status()


def iso(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).isoformat()


def command(
    args: dict[str, Any] | None = None, life_s: float = 5.0, issued_s: float | None = None, id: str | None = None
) -> dict[str, Any]:
    """A good one, unless it is told otherwise."""
    issued_s = time.time() if issued_s is None else issued_s
    made: dict[str, Any] = {
        "id": id or str(uuid.uuid4()),
        "issued_at": iso(issued_s),
        "expires_at": iso(issued_s + life_s),
    }
    return made if args is None else made | {"args": args}


def payload(made: dict[str, Any]) -> bytes:
    return json.dumps(made).encode()
