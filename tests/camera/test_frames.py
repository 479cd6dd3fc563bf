"""Distinct, frozen, stalled: told from the frames alone."""

from typing import Any

import numpy as np

from agent.clock import NS_PER_MS
from agent.messages import CameraState
from agent.robot.frames import FrameWatch

FRAME_NS = 33 * NS_PER_MS


def image(value: int) -> Any:
    return np.full((48, 64, 3), value, np.uint8)


def test_a_change_of_one_byte_is_a_new_frame() -> None:
    watch = FrameWatch(frozen_s=1, stall_s=1, now_ns=0)
    first, second = image(7), image(7)
    second[3, 5, 1] += 1  # outside the quick checksum's grid: at worst taken for a repeat by a careless check
    assert watch.is_distinct(first, FRAME_NS)
    assert not watch.is_distinct(image(7), 2 * FRAME_NS)
    assert watch.is_distinct(second, 3 * FRAME_NS)
    assert watch.frames == 2


def test_freezing_and_stalling_are_told_apart() -> None:
    watch = FrameWatch(frozen_s=1, stall_s=1, now_ns=0)
    assert watch.state(0)[0] is CameraState.CONNECTING
    now_ns = 0
    for number in range(30):
        now_ns += FRAME_NS
        watch.is_distinct(image(number), now_ns)
    assert watch.state(now_ns)[0] is CameraState.STREAMING
    assert round(watch.rate_hz(now_ns)) == 30
    for _ in range(32):
        now_ns += FRAME_NS
        watch.is_distinct(image(29), now_ns)
    assert watch.state(now_ns)[0] is CameraState.FROZEN
    assert watch.last_ns == 30 * FRAME_NS
    assert watch.state(now_ns + 1100 * NS_PER_MS)[0] is CameraState.STALLED
    watch.is_distinct(image(99), now_ns + FRAME_NS)
    assert watch.state(now_ns + FRAME_NS)[0] is CameraState.STREAMING
