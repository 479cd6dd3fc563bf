"""When a station may learn with others: a pure function of how things are. Every reason against is a sentence."""

import re
from dataclasses import dataclass
from datetime import time
from typing import Final

from agent.config import Federation
from agent.fl.cost import GB

MINUTE_S: Final = 60.0

STAY_SHARE: Final = 0.25
"""Of the memory that must be free to begin: what must be left free to go on. In between a trainer takes its part."""


@dataclass(frozen=True)
class Surroundings:
    """How things are right now."""

    enrolled: bool
    paused: bool
    datasets: int  # with consent, and something in them
    wanted: str | None  # why the arm is needed
    idle_s: float  # for how long it was not
    local: time
    free_memory_bytes: float
    wanted_memory_bytes: float
    free_disk_bytes: int
    hottest_c: float | None


def against(settings: Federation, now: Surroundings, *, joined: bool) -> list[str]:
    """Why this station should not take part, most important first; empty when it may."""
    if not now.enrolled:
        return ["this station takes part in no fleet: `so-agent fl enroll`"]
    reasons = []
    if now.paused:
        reasons.append("taking part is paused: `so-agent fl resume`")
    if not now.datasets:
        reasons.append("no dataset may be learnt from: `so-agent fl consent DATASET`")
    if now.wanted:
        reasons.append(f"the arm is needed: {now.wanted}")
    elif not joined and now.idle_s < settings.idle_min * MINUTE_S:
        left_min = settings.idle_min - now.idle_s / MINUTE_S
        reasons.append(f"the arm was used a moment ago: joining in {_minutes(left_min)}")
    if settings.hours and not any(inside(hours, now.local) for hours in settings.hours):
        reasons.append(f"it is {now.local:%H:%M}, and federation.hours are {', '.join(settings.hours)}")
    reasons += _resources(settings, now, joined)
    return reasons


def _resources(settings: Federation, now: Surroundings, joined: bool) -> list[str]:
    reasons = []
    wanted_bytes = now.wanted_memory_bytes * (STAY_SHARE if joined else 1.0)
    if now.free_memory_bytes < wanted_bytes:
        free_gb, wanted_gb = now.free_memory_bytes / GB, wanted_bytes / GB
        reasons.append(f"only {free_gb:.1f} GB of memory are free, {wanted_gb:.1f} are wanted")
    if now.free_disk_bytes < settings.min_free_disk_gb * GB:
        reasons.append(
            f"only {now.free_disk_bytes / GB:.1f} GB of disk are free, {settings.min_free_disk_gb:g} are wanted"
        )
    if not joined and now.hottest_c is not None and now.hottest_c > settings.max_servo_c:
        reasons.append(f"a servo has {now.hottest_c:.0f} °C, and cools down to {settings.max_servo_c:.0f} first")
    return reasons


def inside(hours: str, now: time) -> bool:
    """Whether a time is in hours such as 22:00-06:00, the first included and the last not."""
    first, last = parse_hours(hours)
    if first <= last:
        return first <= now < last or first == last
    return now >= first or now < last


def parse_hours(hours: str) -> tuple[time, time]:
    """Raises ValueError."""
    match = re.fullmatch(r"(\d\d):(\d\d)-(\d\d):(\d\d)", hours)
    if not match:
        raise ValueError(f"{hours!r} is not like 22:00-06:00")
    numbers = [int(part) for part in match.groups()]
    return time(numbers[0], numbers[1]), time(numbers[2] % 24, numbers[3])


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f} min" if minutes >= 1 else f"{minutes * MINUTE_S:.0f} s"
