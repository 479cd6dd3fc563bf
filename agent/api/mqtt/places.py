"""How many commands may be under way at once, and how many may begin a second: a flood ends here, not at the daemon."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from agent.clock import Clock, seconds


class Places:
    """A few places, and a bucket of permissions to take one that fills again by itself (token bucket)."""

    def __init__(self, clock: Clock, most: int, a_second: float) -> None:
        """`most` commands at once; `a_second` of them begin in the long run, twice as many in the first moment."""
        self._clock = clock
        self._most = most
        self._a_second = a_second
        self._permissions = 2 * a_second
        self._filled_ns = clock.now_ns()
        self._running: set[asyncio.Task[None]] = set()

    @property
    def full(self) -> bool:
        now_ns = self._clock.now_ns()
        more = self._a_second * seconds(now_ns - self._filled_ns)
        self._permissions, self._filled_ns = min(2 * self._a_second, self._permissions + more), now_ns
        return len(self._running) >= self._most or self._permissions < 1

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Only when they are not full."""
        self._permissions -= 1
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Cancel what is under way."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
