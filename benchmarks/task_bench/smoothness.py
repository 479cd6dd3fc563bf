"""How smooth the goals on the wire were. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

DEG_PER_COUNT: Final = 360 / 4096
BODY_JOINTS: Final = 5
"""The gripper is measured in percent; it is left out."""


@dataclass(frozen=True)
class Smoothness:
    """Of the five body joints. A step is the change of a goal in one period."""

    step_change_max_deg: float  # the largest difference between two steps that follow each other: where chunks meet
    step_change_rms_deg: float
    jerk_rms: float  # degrees per second cubed


def smoothness(at_ns: Sequence[int], goals: NDArray[np.float64], hz: float) -> Smoothness:
    """`goals`: counts, shape (n, 5), written at `at_ns`. What stands between two writes is held, as the servo does."""
    grid = np.arange(at_ns[0], at_ns[-1], 1e9 / hz)
    rows = np.searchsorted(np.asarray(at_ns), grid, side="right") - 1
    held = goals[rows] * DEG_PER_COUNT
    change = np.diff(held, n=2, axis=0)
    jerk = np.diff(held, n=3, axis=0) * hz**3
    return Smoothness(float(np.abs(change).max()), float(np.sqrt((change**2).mean())), float(np.sqrt((jerk**2).mean())))
