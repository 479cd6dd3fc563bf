"""Slow moves in which all joints arrive together."""

from agent.messages import Joints
from agent.robot.calibration import joints


def approach(current: Joints, target: Joints, speed: float, dt_s: float) -> Joints:
    """The pose `dt_s` further on a straight line in joint space, no joint faster than `speed` units a second.

    Stateless: the target may move between calls, as a leader's pose does.
    """
    remaining_s = duration_s(current, target, speed)
    if remaining_s <= dt_s:
        return target
    share = dt_s / remaining_s
    return joints([a + (b - a) * share for a, b in zip(current, target, strict=True)])


def duration_s(current: Joints, target: Joints, speed: float) -> float:
    """How long `approach` takes from one pose to the other."""
    return distance(current, target) / speed


def distance(a: Joints, b: Joints) -> float:
    """The largest difference of any joint."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))
