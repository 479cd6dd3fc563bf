"""The process of one camera: lerobot's own driver in, distinct frames with their capture times out.

A camera has a process of its own because its driver may take it down: lerobot's reader thread ends after eleven
failures while `is_connected` stays true, and `disconnect()` of a stalled OpenCV camera waits 4 s and then crashes.
So this process never disconnects. It leaves, and the kernel closes the device.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, Final, NoReturn

import cv2
import draccus
import numpy as np
from lerobot.cameras import CameraConfig, ColorMode, make_cameras_from_configs
from lerobot.cameras.opencv import OpenCVCameraConfig  # noqa: F401 - registers its type, as the next three do
from lerobot.cameras.reachy2_camera import Reachy2CameraConfig  # noqa: F401
from lerobot.cameras.realsense import RealSenseCameraConfig  # noqa: F401
from lerobot.cameras.zmq import ZMQCameraConfig  # noqa: F401
from lerobot.utils.import_utils import register_third_party_plugins

from agent.clock import NS_PER_S, Clock, SystemClock
from agent.config import Camera, StationConfig
from agent.errors import BadInput, Exit
from agent.messages import CameraReport, CameraState, FrameHeader
from agent.robot.camera_types import known_types, unknown_type
from agent.robot.frames import FrameWatch, Image
from agent.telemetry import logger
from agent.transport import Publisher

REPORT_EVERY_S: Final = 1.0

READ_TIMEOUT_MS: Final = 100.0
"""How long one wait for a frame lasts, and so how soon a stall, a report or SIGTERM is noticed."""

CONNECT_S: Final = 15.0
"""Opening a USB camera takes up to some seconds. One that has not opened by now never will."""

RETRY_S: Final = 1.0
"""Between two attempts to open a camera that is not there."""

FIRST_FRAME_S: Final = 5.0
"""From opening to the first frame a camera may take this long, whatever its `stall_s`."""

LAST_WORDS_S: Final = 0.2
"""A report needs this long to reach its subscribers before the process ends."""

__all__ = ["driver_config", "known_types", "main"]


def main(config: StationConfig, camera: str) -> None:
    """Entry point of the process. Ends with Exit.DEVICE_FAULT when the camera stalls, to be started again."""
    cv2.setNumThreads(1)  # colour conversion of one frame does not need the control loop's core
    settings = config.cameras[camera]
    config.paths.run.mkdir(parents=True, exist_ok=True)
    publisher = Publisher(config.paths.camera_pub(camera))
    signal.signal(signal.SIGTERM, _leave_at_once)
    CameraProcess(camera, settings, publisher, SystemClock()).run()


def _leave_at_once(number: int, frame: FrameType | None) -> NoReturn:
    _leave(Exit.DONE)


def _leave(status: int) -> NoReturn:
    """Without interpreter shutdown: it would join or crash in the driver's thread."""
    sys.stderr.flush()
    os._exit(status)


def driver_config(name: str, settings: Camera) -> CameraConfig:
    """lerobot's configuration for this camera. Raises BadInput naming the field that it does not accept.

    Values may be strings, as they are when they come from the environment: draccus reads them by the field's type.
    """
    register_third_party_plugins()
    if settings.type not in CameraConfig.get_known_choices():
        raise unknown_type(name, settings.type, set(CameraConfig.get_known_choices()))
    size = {"width": settings.width, "height": settings.height, "fps": settings.fps}
    try:
        return draccus.decode(CameraConfig, {**settings.options, "type": settings.type, **size})
    except (draccus.utils.DraccusException, ValueError) as error:
        raise BadInput(
            f"cameras.{name}.options: {str(error).splitlines()[0]}.",
            f"These are the fields of lerobot's camera type {settings.type}.",
        ) from error


class CameraProcess:
    """Reads one camera for ever."""

    def __init__(self, name: str, settings: Camera, publisher: Publisher, clock: Clock) -> None:
        self._name = name
        self._settings = settings
        self._publisher = publisher
        self._clock = clock
        self._said: tuple[CameraState, str] | None = None
        self._said_ns = 0
        self._last_image: Any = None
        self._problem = "opening"  # while connecting: why the last attempt failed
        self._watch = FrameWatch(settings.frozen_s, settings.stall_s, clock.now_ns())

    def run(self) -> NoReturn:
        try:
            config = driver_config(self._name, self._settings)
        except BadInput as error:
            self._end(CameraState.CONNECTING, str(error), Exit.BAD_INPUT)
        self._flip = getattr(config, "color_mode", None) == ColorMode.BGR
        camera = self._connect(config)
        started_ns = self._clock.now_ns()
        self._watch = FrameWatch(self._settings.frozen_s, self._settings.stall_s, started_ns)
        first_ns = started_ns + round(max(FIRST_FRAME_S, self._settings.stall_s) * NS_PER_S)
        while True:
            try:
                self._take(camera)
            except TimeoutError:
                pass  # `state` knows how long there has been none
            except (OSError, RuntimeError) as error:
                # RuntimeError is lerobot's word for a dead reader thread: nothing comes any more.
                self._end(CameraState.STALLED, f"the driver stopped reading: {error}", Exit.DEVICE_FAULT)
            now_ns = self._clock.now_ns()
            state, reason = self._watch.state(now_ns)
            if state is CameraState.STALLED and (self._watch.frames or now_ns > first_ns):
                self._end(state, reason, Exit.DEVICE_FAULT)
            self._say(state, reason)

    def _connect(self, config: CameraConfig) -> Any:
        """The opened camera. Tries for as long as it takes: a camera may be plugged in an hour from now."""
        while True:
            [camera] = make_cameras_from_configs({self._name: config}).values()
            problem = self._open(camera)
            if problem is None:
                return camera
            # Said in the attempts to come too: reports of one state are a second apart, and "opening" would take
            # the place of the reason every time.
            self._problem = problem
            until_ns = self._clock.now_ns() + round(RETRY_S * NS_PER_S)
            while self._clock.now_ns() < until_ns:
                self._say(CameraState.CONNECTING, problem)
                time.sleep(READ_TIMEOUT_MS / 1000)

    def _open(self, camera: Any) -> str | None:
        """Open in a thread, so that reports go on. Returns what went wrong."""
        problems: list[str] = []

        def connect() -> None:
            try:
                # Without warm-up: that discards a second of frames, and fails where they come late.
                camera.connect(warmup=False)
            except (OSError, RuntimeError, ValueError, ImportError) as error:
                problems.append(str(error).splitlines()[0] if str(error) else type(error).__name__)

        thread = threading.Thread(target=connect, name="connect", daemon=True)
        thread.start()
        deadline_ns = self._clock.now_ns() + round(CONNECT_S * NS_PER_S)
        while thread.is_alive():
            if self._clock.now_ns() > deadline_ns:
                self._end(CameraState.STALLED, f"could not be opened within {CONNECT_S:g} s", Exit.DEVICE_FAULT)
            self._say(CameraState.CONNECTING, self._problem)
            thread.join(READ_TIMEOUT_MS / 1000)
        return problems[0] if problems else None

    def _take(self, camera: Any) -> None:
        """Wait for one frame and publish it if it is new. Raises TimeoutError when none came."""
        image = camera.async_read(timeout_ms=READ_TIMEOUT_MS)
        capture_ns = self._clock.now_ns()
        if getattr(camera, "latest_frame", None) is not None:
            # The frame and its time, together: the reader thread may have replaced both since. perf_counter is
            # CLOCK_MONOTONIC on Linux.
            with camera.frame_lock:
                image, taken_s = camera.latest_frame, camera.latest_timestamp
            capture_ns = round(taken_s * NS_PER_S)
        if image is self._last_image:  # the newest frame was already taken in the last turn
            return
        self._last_image = image
        expected = (self._settings.height, self._settings.width, 3)
        if image.shape != expected or image.dtype != np.uint8:
            self._end(
                CameraState.STREAMING,
                f"frames are {image.shape[1]}x{image.shape[0]}, the configuration says "
                f"{expected[1]}x{expected[0]}; correct cameras.{self._name}.width and height",
                Exit.BAD_INPUT,
            )
        if self._watch.is_distinct(image, capture_ns):
            self._publish(image, capture_ns)

    def _publish(self, image: Image, capture_ns: int) -> None:
        pixels = np.ascontiguousarray(image[:, :, ::-1] if self._flip else image)
        header = FrameHeader(self._name, self._watch.frames, capture_ns, image.shape[1], image.shape[0])
        self._publisher.send(header, pixels.data)

    def _say(self, state: CameraState, reason: str) -> None:
        """Publish a report: at once when the state has changed, else once a second."""
        now_ns = self._clock.now_ns()
        changed = self._said is None or self._said[0] is not state
        if not changed and now_ns - self._said_ns < REPORT_EVERY_S * NS_PER_S:
            return
        if changed:
            logger.info("camera", camera=self._name, state=str(state), reason=reason)
        self._said, self._said_ns = (state, reason), now_ns
        self._publisher.send(
            CameraReport(
                camera=self._name,
                at_ns=now_ns,
                pid=os.getpid(),
                state=state,
                reason=reason,
                frames=self._watch.frames,
                fps=round(self._watch.rate_hz(now_ns), 2),
                last_capture_ns=self._watch.last_ns,
                width=self._settings.width,
                height=self._settings.height,
            )
        )

    def _end(self, state: CameraState, reason: str, status: Exit) -> NoReturn:
        logger.error("camera ends", camera=self._name, state=str(state), reason=reason)
        self._said = None
        self._say(state, reason)
        time.sleep(LAST_WORDS_S)
        _leave(status)
