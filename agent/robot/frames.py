"""What a camera's frames say about the camera: fresh, frozen or stalled. Pure: no camera, no clock."""

import zlib
from collections import deque
from typing import Any, Final

import numpy as np

from agent.clock import NS_PER_S
from agent.messages import CameraState

CHECK_STRIDE: Final = 8
"""Every eighth row and column go into the quick checksum; only when that repeats are all bytes compared."""

RATE_WINDOW_S: Final = 2.0

type Image = np.ndarray[Any, np.dtype[np.uint8]]


class FrameWatch:
    """Tells distinct frames from repeated ones, and knows since when there have been none."""

    def __init__(self, frozen_s: float, stall_s: float, now_ns: int) -> None:
        self._frozen_ns = round(frozen_s * NS_PER_S)
        self._stall_ns = round(stall_s * NS_PER_S)
        self._last: Image | None = None
        self._checksum = 0
        self._arrived_ns = now_ns  # any frame
        self._changed_ns = now_ns  # a distinct one
        self._times: deque[int] = deque()
        self.frames = 0

    def is_distinct(self, image: Image, capture_ns: int) -> bool:
        """False for a frame whose bytes are those of the one before: it must not count as new."""
        self._arrived_ns = capture_ns
        checksum = zlib.crc32(np.ascontiguousarray(image[::CHECK_STRIDE, ::CHECK_STRIDE]).data)
        if self._last is not None and checksum == self._checksum and np.array_equal(image, self._last):
            return False
        self._last, self._checksum = image, checksum
        self._changed_ns = capture_ns
        self._times.append(capture_ns)
        self.frames += 1
        return True

    def state(self, now_ns: int) -> tuple[CameraState, str]:
        """The state and one sentence of why."""
        if now_ns - self._arrived_ns > self._stall_ns:
            return CameraState.STALLED, f"no frame for {(now_ns - self._arrived_ns) / NS_PER_S:.0f} s"
        if self._last is None:
            return CameraState.CONNECTING, "waiting for the first frame"
        # Counted from the last distinct frame to the last repeat, so that a stall is never called a freeze.
        if self._arrived_ns - self._changed_ns > self._frozen_ns:
            return CameraState.FROZEN, "frames arrive, but they are identical to the last byte"
        return CameraState.STREAMING, ""

    def rate_hz(self, now_ns: int) -> float:
        """Distinct frames a second over the last moments."""
        while self._times and now_ns - self._times[0] > RATE_WINDOW_S * NS_PER_S:
            self._times.popleft()
        if len(self._times) < 2:
            return 0.0
        return (len(self._times) - 1) * NS_PER_S / (self._times[-1] - self._times[0])

    @property
    def last_ns(self) -> int | None:
        """Capture time of the last distinct frame."""
        return self._changed_ns if self._last is not None else None
