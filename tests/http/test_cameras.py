"""Previews: small, fresh, and no burden to whoever records."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import zmq
from PIL import Image

from agent.api.http.access.tokens import Role, TokenStore
from agent.api.http.previews import Previews
from agent.clock import SystemClock
from agent.config import StationConfig
from agent.messages import FrameHeader, encode
from agent.transport import endpoint
from tests.http.camera import FPS, FakeCamera
from tests.http.conftest import Bench

FIRST_S = 60.0
"""The program that makes previews has to start, at the lowest priority."""


@pytest.fixture
def front(config: StationConfig) -> Iterator[FakeCamera]:
    config.paths.run.mkdir(parents=True, exist_ok=True)
    camera = FakeCamera(config, "front")
    camera.start()
    yield camera
    camera.close()


async def picture(bench: Bench, after: int = 0) -> tuple[Image.Image, int, float]:
    """The picture, when it was taken and its age in ms."""
    async with asyncio.timeout(FIRST_S):
        while True:
            answer = await bench.http.get("/api/v1/cameras/front/preview.jpg", params={"after": after})
            if answer.status_code == 200:
                headers = answer.headers
                shown = Image.open(BytesIO(answer.content)).convert("RGB")
                return shown, int(headers["X-Captured-Ns"]), float(headers["X-Age-Ms"])
            assert answer.status_code == 204, answer.text


async def test_pictures_are_fresh_and_in_their_colours(bench: Bench, front: FakeCamera) -> None:
    shown, taken_ns, age_ms = await picture(bench)
    assert shown.size == (64, 48)
    assert np.abs(np.asarray(shown).mean(axis=(0, 1)) - (254, 0, 0)).max() < 6
    _, later_ns, _ = await picture(bench, taken_ns)
    assert later_ns > taken_ns
    assert age_ms < 5000


async def test_a_camera_that_delivers_nothing_keeps_nobody_waiting(bench: Bench, front: FakeCamera) -> None:
    _, taken_ns, _ = await picture(bench)
    front.silent = True
    _, taken_ns, _ = await picture(bench)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            _, taken_ns, _ = await picture(bench, taken_ns)  # one that was under way
    answer = await bench.http.get("/api/v1/cameras/front/preview.jpg", params={"after": taken_ns})
    assert answer.status_code == 204
    front.silent = False
    _, later_ns, _ = await picture(bench, taken_ns)
    assert later_ns > taken_ns


async def test_motion_jpeg_goes_on_and_on(bench: Bench, front: FakeCamera) -> None:
    await picture(bench)
    async with bench.http.stream("GET", "/api/v1/cameras/front/stream.mjpeg") as answer:
        assert answer.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
        received = b""
        async with asyncio.timeout(FIRST_S):
            async for part in answer.aiter_bytes():
                received += part
                if received.count(b"--frame") >= 3:
                    break
    assert received.count(b"\xff\xd8\xff") >= 2
    assert b"X-Captured-Ns: " in received


async def test_a_camera_is_shown_to_nobody_whose_token_was_revoked(
    bench: Bench, front: FakeCamera, access: Path
) -> None:
    await picture(bench)
    _, secret = TokenStore(access).create("wall", Role.READ)
    async with bench.as_token(secret) as wall, wall.stream("GET", "/api/v1/cameras/front/stream.mjpeg") as answer:
        parts = answer.aiter_bytes()
        async with asyncio.timeout(FIRST_S):
            await anext(parts)
            TokenStore(access).revoke("wall")
            async for _ in parts:
                pass  # until the station ends it


async def test_an_unknown_camera_is_named_as_such(bench: Bench) -> None:
    for path in ("preview.jpg", "stream.mjpeg"):
        answer = await bench.http.get(f"/api/v1/cameras/back/{path}")
        assert answer.status_code == 404
        assert "front, wrist" in answer.json()["hint"]


async def test_a_preview_program_that_dies_is_started_again(config: StationConfig, front: FakeCamera) -> None:
    assert config.http
    previews = Previews(config, config.http, SystemClock())
    running = asyncio.create_task(previews.run())
    async with asyncio.timeout(FIRST_S):
        while not await previews.after("front", 0):
            pass
        assert previews.process is not None
        first = previews.process
        first.kill()
        await first.wait()
        now_ns = time.monotonic_ns()
        while not await previews.after("front", now_ns):
            pass
    assert previews.process is not first
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert previews.process is None, "it ends with whoever started it"


class Subscriptions(threading.Thread):
    """A camera's socket that tells what it is asked for, and what it really sends."""

    def __init__(self, config: StationConfig) -> None:
        super().__init__(daemon=True)
        config.paths.run.mkdir(parents=True, exist_ok=True)
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.bind(endpoint(config.paths.camera_pub("front")))
        self._ending = threading.Event()
        self.asked_s: list[float] = []  # subscriptions to frames
        self.left_s: list[float] = []

    def run(self) -> None:
        frame = np.zeros((48, 64, 3), np.uint8)
        seq = 0
        while not self._ending.wait(1 / FPS):
            while self._socket.poll(0):
                message = self._socket.recv()
                if b"frame" in message:
                    (self.asked_s if message[0] else self.left_s).append(time.monotonic())
            seq += 1
            header = encode(FrameHeader("front", seq, time.monotonic_ns(), 64, 48))
            self._socket.send_multipart([header, frame.tobytes()])
        self._socket.close()

    def close(self) -> None:
        self._ending.set()
        self.join()


async def test_a_camera_sends_previews_one_frame_at_a_time_and_nothing_when_nobody_looks(config: StationConfig) -> None:
    """Every frame that a camera sends is a megabyte that its process copies: five a second, not thirty."""
    assert config.http
    camera = Subscriptions(config)
    camera.start()
    previews = Previews(config, config.http, SystemClock())
    running = asyncio.create_task(previews.run())
    last_ns = 0
    try:
        async with asyncio.timeout(FIRST_S):
            for _ in range(5):
                while not (shown := await previews.after("front", last_ns)):
                    pass
                last_ns = shown.capture_ns
        assert len(camera.asked_s) >= 4
        assert len(camera.left_s) >= 4, "unsubscribed after each frame"
        span_s = camera.asked_s[-1] - camera.asked_s[0]
        assert (len(camera.asked_s) - 1) / span_s < 1.3 * config.http.preview_fps
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        camera.close()
