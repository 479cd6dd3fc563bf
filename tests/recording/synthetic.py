"""A station without hardware: ticks and frames where the real processes would publish them."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.config import StationConfig
from agent.messages import CameraReport, CameraState, Drive, FrameHeader, Joints, Source, Tick
from agent.transport import Publisher

BITS = 16


def picture(number: int, width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`number` as a 4x4 board of black and white squares, most significant first."""
    bits = [(number >> shift) & 1 for shift in range(BITS - 1, -1, -1)]
    board = np.array(bits, np.uint8).reshape(4, 4) * 255
    tall = np.repeat(np.repeat(board, -(-height // 4), axis=0), -(-width // 4), axis=1)[:height, :width]
    return np.ascontiguousarray(np.repeat(tall[:, :, None], 3, axis=2))


def number_in(image: Any) -> int:
    """The number that `picture` drew. Takes height x width x 3, or lerobot's 3 x height x width; any value range."""
    grey = np.asarray(image, np.float32)
    grey = grey.mean(axis=0) if grey.shape[0] == 3 else grey.mean(axis=2)
    height, width = grey.shape
    level = grey.max() / 2 if grey.max() > 0 else 1.0
    number = 0
    for row in range(4):
        for column in range(4):
            y, x = (2 * row + 1) * height // 8, (2 * column + 1) * width // 8
            number = number << 1 | int(grey[y, x] > level)
    return number


def joints(number: int, offset: float = 0.0) -> Joints:
    """The number, as joint values; exact in float32."""
    first = number * 0.125 + offset
    return (first, first + 1, first + 2, first + 3, first + 4, 50.0)


@dataclass
class SyntheticStation:
    """Publishes until stopped. What a test wants to go wrong it sets while it runs."""

    config: StationConfig
    silent_cameras: set[str] = field(default_factory=set)
    blind_arm: bool = False  # ticks without measured joints
    arm_silent: bool = False
    busy: bool = False  # noisy pictures, as hard to encode as real ones
    number: int = 0

    def __enter__(self) -> "SyntheticStation":
        self.config.paths.run.mkdir(parents=True, exist_ok=True)
        self._stop = threading.Event()
        self._noise = np.random.default_rng(0).integers(0, 24, (8, 480, 640, 3), np.uint8)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        config = self.config
        arm = Publisher(config.paths.arm_pub)
        cameras = {name: Publisher(config.paths.camera_pub(name)) for name in config.cameras}
        self._ready.set()
        period_s = 1 / config.robot.control_hz
        start_ns = time.monotonic_ns()
        every = config.robot.control_hz // config.recording.fps
        turn = 0
        while not self._stop.wait(max(0.0, (start_ns + round(turn * period_s * 1e9) - time.monotonic_ns()) / 1e9)):
            if turn % every == 0:
                self.number += 1
                for name, publisher in cameras.items():
                    if name not in self.silent_cameras:
                        self._frame(publisher, name)
            if not self.arm_silent:
                arm.send(self._tick(turn, start_ns + round(turn * period_s * 1e9)))
            turn += 1
        for publisher in (arm, *cameras.values()):
            publisher.close()

    def _frame(self, publisher: Publisher, name: str) -> None:
        camera = self.config.cameras[name]
        image = picture(self.number, camera.width, camera.height)
        if self.busy:
            image ^= self._noise[self.number % 8, : camera.height, : camera.width]
        header = FrameHeader(name, self.number, time.monotonic_ns(), camera.width, camera.height)
        publisher.send(header, image.data)
        if self.number % 30 == 0:
            publisher.send(CameraReport(name, time.monotonic_ns(), 0, CameraState.STREAMING))

    def _tick(self, turn: int, due_ns: int) -> Tick:
        return Tick(
            seq=turn,
            due_ns=due_ns,
            read_ns=time.monotonic_ns(),
            drive=Drive.FOLLOW,
            source=Source.LEADER,
            measured=None if self.blind_arm else joints(self.number),
            sent=joints(self.number, offset=0.5),
        )
