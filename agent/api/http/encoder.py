"""Makes small pictures of the cameras' frames. A program of its own, at the lowest priority: previews are the first
thing that a busy station goes without.

Run by `agent.api.http.previews`. Reads JSON lines: first `{"cameras": {"front": "/run/cam-front.pub"}, "fps": 5,
"width": 480}`, then whom to watch, e.g. `{"watch": ["front"]}`. Writes two lengths (big-endian, 4 bytes each), a
`FrameHeader` and a JPEG for every picture. Ends with its input.

A camera sends 30 frames a second of a megabyte each to all who subscribe. So this subscribes for one frame, takes it,
and unsubscribes: what a camera process does for previews is bounded by their rate.
"""

import json
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import msgspec
import numpy as np
import zmq

from agent.clock import Clock, SystemClock, nanoseconds
from agent.messages import FrameHeader, encode
from agent.transport import Subscriber, topic

QUALITY: Final = 75

LOWEST: Final = 19
"""A sixtieth of what a recorder gets when both want the same core. Not SCHED_IDLE: a trainer runs there, and people
would see nothing at all beside it."""

NEVER: Final = b"\x00"
"""A topic that no message begins with: a subscriber has one from the start."""

IDLE_MS: Final = 1000

LENGTHS: Final = struct.Struct(">II")

FRAMES: Final = topic(FrameHeader("", 0, 0, 0, 0))


@dataclass
class Camera:
    subscriber: Subscriber
    due_ns: int = 0
    asking: bool = False

    def ask(self) -> None:
        """For one frame that is taken from now on."""
        self.subscriber.socket.setsockopt(zmq.SUBSCRIBE, FRAMES)
        self.asking = True

    def unask(self) -> None:
        self.subscriber.socket.setsockopt(zmq.UNSUBSCRIBE, FRAMES)
        self.asking = False


class Encoder:
    """Serves one parent until its input ends."""

    def __init__(self, orders: dict[str, Any], out: int, clock: Clock) -> None:
        self._paths = {name: Path(path) for name, path in orders["cameras"].items()}
        self._period_ns = nanoseconds(1 / orders["fps"])
        self._width = int(orders["width"])
        self._out = out
        self._clock = clock
        self._cameras: dict[str, Camera] = {}
        self._poller = zmq.Poller()

    def run(self, orders: int) -> None:
        """`orders` is the descriptor that tells whom to watch."""
        self._poller.register(orders, zmq.POLLIN)
        unread = b""
        while True:
            ready = dict(self._poller.poll(self._wait_ms()))
            if orders in ready:
                more = os.read(orders, 65536)
                if not more:
                    return
                *lines, unread = (unread + more).split(b"\n")
                if lines:
                    self._watch(set(json.loads(lines[-1])["watch"]))
            for name, camera in self._cameras.items():
                if camera.subscriber.socket in ready:
                    self._take(name, camera)
                now_ns = self._clock.now_ns()
                if not camera.asking and now_ns >= camera.due_ns:
                    camera.ask()
                    camera.due_ns = now_ns + self._period_ns

    def _wait_ms(self) -> int:
        waiting = [camera.due_ns for camera in self._cameras.values() if not camera.asking]
        if not waiting:
            return IDLE_MS
        return max(0, min(waiting) - self._clock.now_ns()) // 1_000_000

    def _watch(self, wanted: set[str]) -> None:
        for name in set(self._cameras) - wanted:
            camera = self._cameras.pop(name)
            self._poller.unregister(camera.subscriber.socket)
            camera.subscriber.close()
        for name in wanted & set(self._paths) - set(self._cameras):
            camera = self._cameras[name] = Camera(Subscriber(self._paths[name], queue=1, topic=NEVER))
            self._poller.register(camera.subscriber.socket, zmq.POLLIN)

    def _take(self, name: str, camera: Camera) -> None:
        frames = list(camera.subscriber.drain())
        if not frames or not camera.asking:  # sent before the last unsubscribe was heard
            return
        camera.unask()
        parts = frames[-1]
        header = msgspec.msgpack.decode(parts[0].buffer, type=FrameHeader)
        frame = np.frombuffer(parts[1].buffer, np.uint8).reshape(header.height, header.width, 3)
        picture = small_jpeg(frame, self._width)
        head = encode(msgspec.structs.replace(header, camera=name))
        _write(self._out, LENGTHS.pack(len(head), len(picture)) + head + picture)


def small_jpeg(frame: Any, width: int) -> bytes:
    """A JPEG of an RGB8 frame (height, width, 3), at most `width` pixels wide."""
    height_px, width_px = frame.shape[:2]
    if width_px > width:
        frame = cv2.resize(frame, (width, round(height_px * width / width_px)), interpolation=cv2.INTER_AREA)
    _, picture = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return picture.tobytes()


def _write(out: int, data: bytes) -> None:
    while data:
        data = data[os.write(out, data) :]


def main() -> None:
    os.nice(LOWEST)
    cv2.setNumThreads(1)
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as orders:  # a buffer would swallow later lines
        Encoder(json.loads(orders.readline()), sys.stdout.fileno(), SystemClock()).run(orders.fileno())


if __name__ == "__main__":
    main()
