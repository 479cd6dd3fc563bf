"""The arm's ticks, as they are published: when it first obeyed, and how regular its loop was."""

import threading
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from agent.messages import ArmReport, Drive, Tick
from agent.transport import Subscriber
from benchmarks.control_bench.rig import wait_for

OBEYS: Final = (Drive.ALIGN, Drive.FOLLOW)

KEPT: Final = 6000
"""Three minutes at 30 Hz: longer than any window that is looked at."""


class Ticks:
    """Listens to the arm in a thread of its own, so that nothing here delays a time stamp: those are the arm's."""

    def __init__(self, path: Path) -> None:
        self._subscriber = Subscriber(path)
        self._decoder = msgspec.msgpack.Decoder(Tick | ArmReport)
        self._ticks: deque[Tick] = deque(maxlen=KEPT)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            if parts := self._subscriber.receive(0.2):
                message = self._decoder.decode(parts[0].buffer)
                if isinstance(message, Tick):
                    self._ticks.append(message)

    def first_obeying_ns(self, after_ns: int, timeout_s: float = 10.0) -> int:
        """When the first tick after a moment sent the arm somewhere. Raises BenchError."""
        return wait_for("the arm obeys", lambda: first_obeying(self._since(after_ns)), timeout_s, poll_s=0.02)

    def period_errors_ms(self, begin_ns: int, end_ns: int) -> list[float]:
        return period_errors_ms([tick for tick in self._since(begin_ns) if tick.due_ns <= end_ns])

    def _since(self, begin_ns: int) -> list[Tick]:
        """Ascending. Only the newest are looked at: the cores are wanted elsewhere."""
        found = []
        for tick in reversed(self._ticks.copy()):
            if tick.read_ns < begin_ns:
                break
            found.append(tick)
        return found[::-1]

    def close(self) -> None:
        self._stop.set()
        self._thread.join(2.0)
        self._subscriber.close()


def first_obeying(ticks: Sequence[Tick]) -> int | None:
    """When the first of them that sent the arm somewhere read its joints."""
    return next((tick.read_ns for tick in ticks if tick.drive in OBEYS and tick.sent is not None), None)


def period_errors_ms(ticks: Sequence[Tick]) -> list[float]:
    """|interval - period| of the moments at which the loop woke; where a tick was not heard there is no interval."""
    woke = [(tick.seq, tick.due_ns, tick.due_ns + tick.late_ns) for tick in ticks]
    return [
        abs((later[2] - earlier[2]) - (later[1] - earlier[1])) / 1e6
        for earlier, later in pairwise(woke)
        if later[0] == earlier[0] + 1
    ]
