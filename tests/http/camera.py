"""A camera process without a camera: publishes where the real one would, and counts who it is asked by."""

import threading
import time

import numpy as np

from agent.config import StationConfig
from agent.messages import FrameHeader
from agent.transport import Publisher

FPS = 30


class FakeCamera(threading.Thread):
    """Frames whose red channel counts. `silent` stops them."""

    def __init__(self, config: StationConfig, name: str) -> None:
        super().__init__(daemon=True)
        self._name = name
        self._size = (config.cameras[name].width, config.cameras[name].height)
        self._path = config.paths.camera_pub(name)
        self._ending = threading.Event()
        self.silent = False

    def run(self) -> None:
        publisher = Publisher(self._path)
        width, height = self._size
        seq = 0
        while not self._ending.wait(1 / FPS):
            if self.silent:
                continue
            seq += 1
            image = np.zeros((height, width, 3), np.uint8)
            image[:, :, 0] = 255  # red, so that swapped channels would be noticed
            publisher.send(FrameHeader(self._name, seq, time.monotonic_ns(), width, height), image.data)
        publisher.close()

    def close(self) -> None:
        self._ending.set()
        self.join()
