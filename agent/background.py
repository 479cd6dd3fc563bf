"""Work that nobody waits for."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from agent.telemetry import logger


class Background:
    """Starts coroutines, keeps them alive, and says so when one fails: nobody else would."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def settle(self) -> None:
        """Until everything that was started has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("background work failed", work=task.get_coro(), error=repr(error), exc_info=error)
