"""The last gate before the servos: what may be sent, as one pure function."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.config import Safety as SafetyConfig
from agent.errors import Safety
from agent.messages import JOINTS, Joints, Limit
from agent.robot.calibration import GRIPPER, Scale, joints

TOLERANCE: Final = 1e-6
"""Changes below this are rounding, not limits worth reporting. Degrees or percent."""


@dataclass(frozen=True)
class Limits:
    """Per joint: lowest and highest value, and speed in units a second."""

    low: Joints
    high: Joints
    speed: Joints

    @classmethod
    def of(cls, config: SafetyConfig, scale: Scale) -> "Limits":
        """The calibrated range less the margin. The gripper keeps its whole range: closing it fully is its job."""
        margin = [0.0 if name == GRIPPER else config.range_margin_deg for name in JOINTS]
        speed = [config.max_gripper_pct_s if name == GRIPPER else config.max_speed_deg_s for name in JOINTS]
        # A range narrower than its two margins shrinks to its middle.
        middle = [(low + high) / 2 for low, high in zip(scale.low, scale.high, strict=True)]
        return cls(
            low=joints([min(low + m, mid) for low, m, mid in zip(scale.low, margin, middle, strict=True)]),
            high=joints([max(high - m, mid) for high, m, mid in zip(scale.high, margin, middle, strict=True)]),
            speed=joints(speed),
        )


def clamp(pose: Joints, limits: Limits) -> Joints:
    """The nearest pose within the range."""
    return joints([min(max(v, low), high) for v, low, high in zip(pose, limits.low, limits.high, strict=True)])


def filter_action(
    requested: Sequence[float], previous: Joints, limits: Limits, dt_s: float
) -> tuple[Joints, tuple[Limit, ...]]:
    """The action that may be sent `dt_s` after `previous` was, and what was changed about the one requested.

    Speed is relative to what was sent before, not to the measured pose: a servo under load lags behind its goal,
    and continuing from the lag would let it sink. An arm that is already outside of its range (it may lie on its
    end stop) is never pushed further out and never forced inward; it moves back when it is asked to.

    Raises Safety for anything that is not six finite numbers; the caller holds.
    """
    if len(requested) != len(JOINTS):
        raise Safety(f"An action needs {len(JOINTS)} values, this one has {len(requested)}.")
    if not all(math.isfinite(value) for value in (*requested, *previous)):
        raise Safety(f"An action holds a value that is not finite: {list(requested)}.")
    if not (math.isfinite(dt_s) and dt_s > 0):
        raise Safety(f"An action cannot follow {dt_s} s after the previous one.")
    sent: list[float] = []
    changes: list[Limit] = []
    for i, name in enumerate(JOINTS):
        wanted, before = float(requested[i]), previous[i]
        value = min(max(wanted, min(limits.low[i], before)), max(limits.high[i], before))
        if abs(value - wanted) > TOLERANCE:
            changes.append(Limit(name, "range", wanted, value))
        step = limits.speed[i] * dt_s
        slowed = min(max(value, before - step), before + step)
        if abs(slowed - value) > TOLERANCE:
            changes.append(Limit(name, "speed", wanted, slowed))
        sent.append(slowed)
    return joints(sent), tuple(changes)
