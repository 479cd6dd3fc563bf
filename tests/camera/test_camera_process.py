"""The real camera process with lerobot's own ZMQCamera, served by a publisher that speaks its protocol."""

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import zmq
from lerobot.cameras import CameraConfig

from agent.config import StationConfig
from agent.errors import BadInput, Exit
from agent.messages import CameraReport, CameraState, FrameHeader
from agent.robot.camera import driver_config
from agent.robot.camera_types import BUILT_IN, check_type, known_types
from agent.transport import Subscriber
from tests.nursery import CAMERA, Nursery
from tests.recording.synthetic import number_in, picture

WIDTH, HEIGHT = 160, 96
DECODER: msgspec.msgpack.Decoder[FrameHeader | CameraReport] = msgspec.msgpack.Decoder(FrameHeader | CameraReport)


class Source:
    """What lerobot's image server sends: JSON with a base64 JPEG, 30 times a second."""

    def __init__(self) -> None:
        self._socket = zmq.Context.instance().socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.frozen = False
        self.silent = False
        self.size = (WIDTH, HEIGHT)
        self.number = 0
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._halt.wait(1 / 30):
            if self.silent:
                continue
            if not self.frozen:
                self.number += 1
            jpeg = cv2.imencode(".jpg", picture(self.number, *self.size))[1].tobytes()
            message = {"timestamps": {"front": time.time()}, "images": {"front": base64.b64encode(jpeg).decode()}}
            self._socket.send_string(json.dumps(message))
        self._socket.close()

    def stop(self) -> None:
        self._halt.set()
        self._thread.join()


class Listener:
    """The camera process and everything it says."""

    def __init__(self, nursery: Nursery, config: StationConfig) -> None:
        config.paths.run.mkdir(parents=True, exist_ok=True)
        self._subscriber = Subscriber(config.paths.camera_pub("front"))
        self.started = time.monotonic()
        self.process = nursery.spawn("camera-front", f"{CAMERA}:main", config, camera="front")

    def until[T: (FrameHeader, CameraReport)](
        self, kind: type[T], wanted: Callable[[T], bool], within_s: float = 10
    ) -> tuple[T, Any]:
        deadline = time.monotonic() + within_s
        heard = None
        while time.monotonic() < deadline:
            parts = self._subscriber.receive(0.1)
            if parts is None:
                continue
            heard = DECODER.decode(parts[0].buffer)
            if isinstance(heard, kind) and wanted(heard):
                return heard, parts[1].buffer if len(parts) > 1 else None
        raise AssertionError(f"not within {within_s} s; last heard {heard}")

    def silence_of_frames(self, for_s: float) -> bool:
        """True when no frame is published for that long."""
        deadline = time.monotonic() + for_s
        while time.monotonic() < deadline:
            parts = self._subscriber.receive(0.05)
            if parts is not None and isinstance(DECODER.decode(parts[0].buffer), FrameHeader):
                return False
        return True

    def close(self) -> None:
        self._subscriber.close()
        self.process.kill()


@pytest.fixture
def source() -> Iterator[Source]:
    made = Source()
    yield made
    made.stop()


@pytest.fixture
def listen(nursery: Nursery, make_config: Any) -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def start(port: int, **camera: Any) -> Listener:
        settings = {
            "view": "OBS_IMAGE_1", "type": "zmq", "width": WIDTH, "height": HEIGHT, "frozen_s": 0.5, "stall_s": 0.5,
            "options": {"server_address": "127.0.0.1", "port": str(port), "camera_name": "front"},
        }  # fmt: skip
        made.append(Listener(nursery, make_config(cameras={"front": settings | camera})))
        return made[-1]

    yield start
    for listener in made:
        listener.close()


def any_frame(header: FrameHeader) -> bool:
    return True


def test_distinct_frames_arrive_in_order_with_their_capture_times(source: Source, listen: Any) -> None:
    listener = listen(source.port)
    last_number, last = -1, None
    for _ in range(20):
        header, pixels = listener.until(FrameHeader, any_frame)
        number = number_in(np.frombuffer(pixels, np.uint8).reshape(HEIGHT, WIDTH, 3))
        assert number > last_number
        age_ms = (time.monotonic_ns() - header.capture_ns) / 1e6
        assert 0 <= age_ms < 500
        if last is not None:
            assert header.seq > last.seq
            assert header.capture_ns > last.capture_ns
        last_number, last = number, header
    report, _ = listener.until(CameraReport, lambda said: said.state is CameraState.STREAMING and said.fps > 0)
    assert report.fps == pytest.approx(30, abs=8)


def test_a_frozen_camera_is_reported_and_its_frames_are_not_passed_off_as_new(source: Source, listen: Any) -> None:
    listener = listen(source.port)
    listener.until(FrameHeader, any_frame)
    source.frozen = True
    report, _ = listener.until(CameraReport, lambda said: said.state is CameraState.FROZEN, within_s=3)
    assert "identical" in report.reason
    assert listener.silence_of_frames(0.3)
    source.frozen = False
    listener.until(FrameHeader, any_frame, within_s=2)
    listener.until(CameraReport, lambda said: said.state is CameraState.STREAMING, within_s=2)


def test_a_stalled_camera_is_reported_and_its_process_leaves_to_be_restarted(source: Source, listen: Any) -> None:
    listener = listen(source.port)
    listener.until(FrameHeader, any_frame)
    source.silent = True
    stalled_at = time.monotonic()
    report, _ = listener.until(CameraReport, lambda said: said.state is CameraState.STALLED, within_s=3)
    assert "no frame" in report.reason
    assert listener.process.ended(within_s=3) == Exit.DEVICE_FAULT
    assert time.monotonic() - stalled_at < 2.5


def test_a_camera_that_never_delivers_is_reported_while_it_is_waited_for(listen: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        listener = listen(unused.getsockname()[1])
        listener.until(CameraReport, lambda said: said.state is CameraState.STALLED, within_s=4)
        assert listener.process.ended(within_s=8) == Exit.DEVICE_FAULT


def test_a_camera_that_is_not_plugged_in_is_tried_again_and_reported(listen: Any) -> None:
    listener = listen(0, type="opencv", options={"index_or_path": "/dev/so-agent-no-such-camera"})
    report, _ = listener.until(
        CameraReport, lambda said: said.state is CameraState.CONNECTING and "so-agent-no-such" in said.reason
    )
    assert report.frames == 0
    listener.process.terminate()
    assert listener.process.ended(within_s=2) == 0


def test_frames_of_another_size_are_refused_with_both_sizes_named(source: Source, listen: Any) -> None:
    source.size = (320, 240)
    listener = listen(source.port)
    report, _ = listener.until(CameraReport, lambda said: "320x240" in said.reason)
    assert f"{WIDTH}x{HEIGHT}" in report.reason
    assert listener.process.ended(within_s=3) == Exit.BAD_INPUT


def test_sigterm_ends_the_process_within_a_moment_even_while_streaming(source: Source, listen: Any) -> None:
    listener = listen(source.port)
    listener.until(FrameHeader, any_frame)
    listener.process.terminate()
    before = time.monotonic()
    assert listener.process.ended(within_s=2) == 0
    assert time.monotonic() - before < 0.5


def test_the_known_types_are_those_that_lerobot_registers() -> None:
    choices = CameraConfig.get_known_choices()
    assert {kind for kind, made in choices.items() if made.__module__.startswith("lerobot.")} == BUILT_IN
    assert known_types() >= BUILT_IN


def test_an_unknown_type_is_refused_with_what_is_allowed(make_config: Any, listen: Any) -> None:
    with pytest.raises(BadInput, match=r"cameras\.front\.type: found 'kinect'; allowed are .*opencv.*zmq"):
        check_type("front", "kinect")
    listener = listen(1, type="kinect")
    listener.until(CameraReport, lambda said: "kinect" in said.reason)
    assert listener.process.ended(within_s=3) == Exit.BAD_INPUT


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"server_address": "a", "colour": "red"}, "colour"),
        ({"server_address": "a", "port": "many"}, "port"),
        ({}, "server_address"),
    ],
)
def test_options_that_the_driver_does_not_know_are_named(make_config: Any, options: Any, named: str) -> None:
    made = make_config(cameras={"front": {"view": "OBS_IMAGE_1", "type": "zmq", "options": options}})
    with pytest.raises(BadInput, match=named):
        driver_config("front", made.cameras["front"])


def test_options_from_the_environment_are_read_by_the_type_of_their_field(make_config: Any) -> None:
    options = {"index_or_path": "4", "fourcc": "MJPG"}
    made = make_config(cameras={"front": {"view": "OBS_IMAGE_1", "type": "opencv", "options": options}})
    assert driver_config("front", made.cameras["front"]).index_or_path == 4
