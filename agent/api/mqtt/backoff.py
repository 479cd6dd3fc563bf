"""How long to wait before the next try: longer every time, and never all stations at once."""

import random
from typing import Final

FIRST_S: Final = 1.0
LONGEST_S: Final = 30.0
"""A fleet of a thousand then knocks 67 times a second on a broker that refuses it, and is back within half a minute."""

LEAST_S: Final = 0.1

STABLE_S: Final = 20.0
"""A connection that lasted this long was a good one: the next try begins with short waits again."""


class Backoff:
    """A wait is drawn evenly from a range whose end doubles with every failure ("full jitter"): after a broker has
    restarted, its stations come back spread out, whenever they were cut off."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._ceiling_s = FIRST_S

    def next_s(self, lasted_s: float) -> float:
        """`lasted_s`: how long the connection stood that has just ended; 0 when there was none."""
        if lasted_s >= STABLE_S:
            self._ceiling_s = FIRST_S
        wait_s = self._chance.uniform(LEAST_S, self._ceiling_s)
        self._ceiling_s = min(LONGEST_S, 2 * self._ceiling_s)
        return wait_s
