"""How long a chunk takes from its observation, as it was lately.

A window rather than a maximum: one slow inference, which every host has now and then, must not make the policy plan
around it for ever after.
"""

import math
from collections import deque
from typing import Final

WINDOW: Final = 32
"""Delays that count: half a minute at a chunk a second; enough for a 95th percentile that one spike leaves alone."""

WARM_UP: Final = 1
"""First delays that do not count: caches are cold and memory is allocated."""


class DelayWindow:
    """Percentiles of the last delays of one policy, in seconds."""

    def __init__(self, window: int = WINDOW, warm_up: int = WARM_UP) -> None:
        self._delays: deque[float] = deque(maxlen=window)
        self._warm_up = warm_up
        self._cold = warm_up

    def add(self, delay_s: float) -> None:
        """A chunk took this long. Raises ValueError for what is no duration."""
        if not (math.isfinite(delay_s) and delay_s >= 0):
            raise ValueError(f"{delay_s} s is no delay")
        if self._cold:
            self._cold -= 1
        else:
            self._delays.append(delay_s)

    def reset(self) -> None:
        """Another policy, engine or place: start again, warm-up included."""
        self._delays.clear()
        self._cold = self._warm_up

    def __len__(self) -> int:
        return len(self._delays)

    @property
    def p50_s(self) -> float | None:
        return self.percentile(50)

    @property
    def p95_s(self) -> float | None:
        return self.percentile(95)

    def percentile(self, percent: float) -> float | None:
        """Nearest rank: a delay that was measured, at least as long as `percent` of them. None before there is any."""
        if not self._delays:
            return None
        rank = math.ceil(percent / 100 * len(self._delays))
        return sorted(self._delays)[max(rank, 1) - 1]
