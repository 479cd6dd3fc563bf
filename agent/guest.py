"""Federation in the station's house: it is told to make room, and what goes wrong with it stays its own.

The arm must move whatever state a stranger's round is in, so nothing that federation raises gets past this module.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from agent.clock import Clock
from agent.config import StationConfig
from agent.errors import AgentError
from agent.fl.desk import Desk
from agent.requests import Progress, Request
from agent.telemetry import logger

AGAIN_S: Final = 60.0
"""Between two tries of a federation that failed: it is a bug or a broken file, and neither mends itself soon."""

type Answer = Callable[[dict[str, Any], Progress], Awaitable[dict[str, Any]]]


class Federated(Protocol):
    """What `agent.fl.federation.Federation` is to the station."""

    async def run(self) -> None:
        """As long as the station does."""
        ...

    def yield_now(self, cause: str) -> None:
        """The arm is wanted: freeze and make room. Returns at once."""
        ...

    def judged(self, policy: str, success: bool) -> None:
        """A person judged a task that this policy did."""
        ...

    def status(self) -> dict[str, Any] | None:
        """None while the station is in no federation."""
        ...

    def verbs(self) -> dict[str, Answer]:
        """`fl.*`, each with its arguments and where to report progress."""
        ...


type Federate = Callable[[StationConfig, Clock, Desk], Federated]


class Guest:
    """Federation, or nobody."""

    def __init__(self, federated: Federated | None) -> None:
        self._federated = federated
        self._problem: str | None = None

    async def run(self) -> None:
        """For ever, through whatever happens to it."""
        while self._federated:
            try:
                await self._federated.run()
                return
            except Exception as error:  # noqa: BLE001 - the edge: the station goes on without federation
                self._failed(error)
            await asyncio.sleep(AGAIN_S)

    def yield_now(self, cause: str) -> None:
        if self._federated:
            try:
                self._federated.yield_now(cause)
            except Exception as error:  # noqa: BLE001 - the edge: nothing keeps a person from the arm
                self._failed(error)

    def judged(self, policy: str, success: bool) -> None:
        if self._federated:
            try:
                self._federated.judged(policy, success)
            except Exception as error:  # noqa: BLE001 - the edge
                self._failed(error)

    def status(self) -> dict[str, Any] | None:
        if self._federated is None:
            return None
        try:
            return self._federated.status()
        except Exception as error:  # noqa: BLE001 - the edge: people need the rest of the status now more than ever
            self._failed(error)
            return {"problem": self._problem}

    def verbs(self) -> dict[str, Callable[[Request], Awaitable[dict[str, Any]]]]:
        return {name: _verb(answer) for name, answer in (self._federated.verbs() if self._federated else {}).items()}

    def _failed(self, error: Exception) -> None:
        self._problem = str(error) if isinstance(error, AgentError) else repr(error)
        logger.error("federation failed", problem=self._problem, exc_info=error)


def _verb(answer: Answer) -> Callable[[Request], Awaitable[dict[str, Any]]]:
    async def do(request: Request) -> dict[str, Any]:
        return await answer(request.args, request.progress)

    return do
