"""Messages that were received and not looked at yet: bounded, and a stop overtakes everything."""

import asyncio
from collections import deque
from typing import Final

from aiomqtt import Message

INBOX_MESSAGES: Final = 256
"""Far more than a sane sender sends before they are looked at, which takes microseconds each."""

STOPS: Final = ("/cmd/estop", "/cmd/hold")


class Inbox(asyncio.Queue[Message]):
    """What `aiomqtt.Client` puts messages into. When it is full it discards what comes, but not a stop.

    Stops are bounded too: while INBOX_MESSAGES of them wait, one more would change nothing.
    """

    def _init(self, maxsize: int) -> None:
        self._stops: deque[Message] = deque(maxlen=INBOX_MESSAGES)
        self._others: deque[Message] = deque()

    def _put(self, item: Message) -> None:
        (self._stops if _is_stop(item) else self._others).append(item)

    def _get(self) -> Message:
        return self._stops.popleft() if self._stops else self._others.popleft()

    def qsize(self) -> int:
        return len(self._stops) + len(self._others)

    def empty(self) -> bool:
        return not self.qsize()

    def put_nowait(self, item: Message) -> None:
        if len(self._others) >= INBOX_MESSAGES and not _is_stop(item):
            raise asyncio.QueueFull
        super().put_nowait(item)


def _is_stop(message: Message) -> bool:
    return message.topic.value.endswith(STOPS)
