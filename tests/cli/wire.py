"""The two sockets that the command line talks to, with known answers behind them."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from agent.api import local
from agent.errors import BadInput
from agent.messages import ArmCommand, ArmEstop, ArmReport, Drive
from tests.stand_in import StandIn

type Answer = dict[str, Any] | Exception | Callable[[dict[str, Any]], dict[str, Any]]


class Agent:
    """Answers verbs on a Unix socket as the daemon would; `asked` keeps what was asked."""

    def __init__(self, socket: Path, answers: dict[str, Answer]) -> None:
        self.socket = socket
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.progress: list[dict[str, Any]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with local.serve(self.socket, self._handle):
            self._up.set()
            await self._stop.wait()

    async def _handle(self, verb: str, args: dict[str, Any], progress: local.Progress) -> dict[str, Any]:
        self.asked.append((verb, args))
        for event in self.progress:
            await progress(event)
        answer = self.answers.get(verb, BadInput(f"unexpected verb {verb}"))
        if isinstance(answer, Exception):
            raise answer
        return answer(args) if callable(answer) else answer

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


class Arm(StandIn):
    """Answers arm commands; `verified` says what the servos' read-back shows, one entry a question."""

    def __init__(self, socket: Path, verified: list[bool | None], pid: int = 1) -> None:
        super().__init__(socket, ArmCommand)
        self._pid = pid
        self._verified = verified
        self.asked: list[ArmCommand] = []

    def answer(self, command: ArmCommand) -> ArmReport:
        self.asked.append(command)
        return report(self._verified.pop(0) if len(self._verified) > 1 else self._verified[0], self._pid)

    @property
    def stops(self) -> list[ArmEstop]:
        return [command for command in self.asked if isinstance(command, ArmEstop)]


def report(verified: bool | None, pid: int) -> ArmReport:
    return ArmReport(
        at_ns=1, pid=pid, drive=Drive.ESTOP, reason="hand in the way", bus_connected=True, leader_connected=True,
        estop_verified=verified,
    )  # fmt: skip
