"""Slows down whoever tries tokens. Bounded: an attacker with many addresses costs no memory."""

from collections import OrderedDict
from typing import Final

from agent.clock import Clock, nanoseconds, seconds

ATTEMPTS: Final = 5
WINDOW_S: Final = 60.0
"""Five wrong tokens a minute and address: more than a person types, far less than a program wants."""

MAX_ADDRESSES: Final = 1000


class Throttle:
    """Counts failures in a sliding minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, list[int]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """How long this address must wait before its next attempt; 0: not at all."""
        now = self._clock.now_ns()
        recent = self._recent(address, now)
        return WINDOW_S - seconds(now - recent[-ATTEMPTS]) if len(recent) >= ATTEMPTS else 0.0

    def failed(self, address: str) -> None:
        now = self._clock.now_ns()
        self._failures[address] = [*self._recent(address, now), now]
        self._failures.move_to_end(address)
        while len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        self._failures.pop(address, None)

    def _recent(self, address: str, now_ns: int) -> list[int]:
        times = self._failures.get(address, [])
        return [time for time in times if now_ns - time < nanoseconds(WINDOW_S)][-ATTEMPTS:]
