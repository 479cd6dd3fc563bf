"""Cameras that cost nothing to make: JPEGs encoded beforehand, published as lerobot's ZMQCamera expects them.

    python -m benchmarks.control_bench.synthetic_cameras WIDTH HEIGHT FPS PORT...

Prints "ready" when it publishes; runs until SIGTERM. Every message differs from the one before, so that none counts as
frozen.
"""

import base64
import json
import signal
import sys
import time
from types import FrameType
from typing import Any, Final

import cv2
import numpy as np
import zmq

from agent.virtual.realtime import run_like_hardware

PICTURES: Final = 60
"""Two seconds of distinct pictures at 30 fps, then again."""

JPEG_QUALITY: Final = 80
"""As lerobot's own image server encodes."""

NOISE_SIGMA: Final = 2.0
"""Sensor noise, of 255. Without it encoders would have nothing to do between two pictures."""

SEED: Final = 7


def pictures(width: int, height: int, count: int = PICTURES) -> list[str]:
    """A noisy background with a disc that moves over it: about as hard to encode as a camera on a desk."""
    noise = np.random.default_rng(SEED)
    ramp = np.linspace(60, 180, width, dtype=np.float32)[None, :, None] + np.zeros((height, 1, 3), np.float32)
    made = []
    for index in range(count):
        image = np.clip(ramp + noise.normal(0, NOISE_SIGMA, ramp.shape), 0, 255).astype(np.uint8)
        angle = 2 * np.pi * index / count
        centre = (int(width * (0.5 + 0.3 * np.cos(angle))), int(height * (0.5 + 0.3 * np.sin(angle))))
        cv2.circle(image, centre, height // 8, (40, 40, 220), -1)
        encoded = cv2.imencode(".jpg", image, [int(cv2.IMWRITE_JPEG_QUALITY), JPEG_QUALITY])[1]
        made.append(base64.b64encode(encoded.tobytes()).decode())
    return made


def main(argv: list[str]) -> None:
    width, height, fps, *ports = (int(text) for text in argv[1:])
    signal.signal(signal.SIGTERM, _leave)
    images = pictures(width, height)
    messages = [json.dumps({"timestamps": {}, "images": {"camera": image}}) for image in images]
    context: zmq.Context[Any] = zmq.Context.instance()
    sockets = []
    for port in ports:
        socket = context.socket(zmq.PUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(f"tcp://127.0.0.1:{port}")
        sockets.append(socket)
    run_like_hardware()  # 1% of a core
    print("ready", flush=True)
    start = time.monotonic()
    index = 0
    while True:
        for number, socket in enumerate(sockets):
            # Real cameras do not fire together either.
            due = start + (index + number / len(sockets)) / fps
            time.sleep(max(0.0, due - time.monotonic()))
            socket.send_string(messages[(index + 7 * number) % len(messages)])
        index += 1


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv)
