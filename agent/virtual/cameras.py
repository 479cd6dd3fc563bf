"""Cameras that draw the scene and publish it as lerobot's unmodified `ZMQCamera` expects.

That class hands out whatever `cv2.imdecode` returns; encoding RGB pixels without swapping them therefore makes the
arrays it returns RGB.
"""

import base64
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import cv2
import mujoco
import numpy as np
import zmq

from agent.errors import BadInput
from agent.virtual.bus import WireLog
from agent.virtual.dynamics import Dynamics
from agent.virtual.stamp import Image, read_stamp, write_stamp

__all__ = ["CameraFault", "CameraSpec", "Cameras", "read_stamp"]

JPEG_QUALITY: Final = 85
NOISE_PX: Final = (96, 128)
NOISE_SIGMA: Final = 3.0  # of 255: enough to survive JPEG, too little to see
NOISE_POOL: Final = (256, 256)
SEND_QUEUE: Final = 2  # frames; an unread camera must not pile up memory
RATE_WINDOW: Final = 60  # frames
RESYNC_S: Final = 0.5  # further behind than this, frames are skipped
JOIN_S: Final = 5.0
FIRST_FRAME_S: Final = 20.0


class CameraFault(StrEnum):
    NONE = "none"
    FROZEN = "frozen"  # the same bytes over and over
    STALLED = "stalled"  # connected, but no frames
    GONE = "gone"  # the socket is closed


@dataclass(frozen=True)
class CameraSpec:
    """One camera to serve: `name` is the view in the scene, `published_as` the key in the message."""

    name: str
    address: str
    port: int
    published_as: str
    width: int = 640
    height: int = 480
    fps: int = 30


class _Stream:
    """One camera's socket, schedule and fault. Touched by the render thread only, but for `fault`."""

    def __init__(self, spec: CameraSpec, camera_id: int, seed: int) -> None:
        self.spec = spec
        self.camera_id = camera_id
        self.fault = CameraFault.NONE
        self.due_s = 0.0
        self.frames = 0
        self.sent_at: deque[float] = deque(maxlen=RATE_WINDOW)
        self.pixels = np.empty((spec.height, spec.width, 3), np.uint8)
        self._random = np.random.default_rng(seed)
        self._noise = self._random.normal(0, NOISE_SIGMA, (*NOISE_POOL, 3)).round().astype(np.int16)
        self._last = b""
        self._socket: zmq.Socket[bytes] | None = None

    def open(self) -> None:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        socket.setsockopt(zmq.LINGER, 0)
        try:
            socket.bind(f"tcp://{self.spec.address}:{self.spec.port}")
        except zmq.ZMQError as error:
            socket.close()
            raise BadInput(
                f"Camera {self.spec.name} cannot serve on port {self.spec.port}: {error}.",
                "Give every camera of every running station a port of its own.",
            ) from error
        self._socket = socket

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def wants_drawing(self) -> bool:
        """Follow the fault; False when this frame is not drawn."""
        if self.fault is CameraFault.GONE:
            self.close()
            return False
        if self._socket is None:
            self.open()
        if self.fault is CameraFault.FROZEN and self._last:
            self._send(self._last)
            return False
        return self.fault is not CameraFault.STALLED

    def publish(self) -> None:
        self._add_noise()
        ok, jpeg = cv2.imencode(".jpg", self.pixels, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
        if not ok:
            raise RuntimeError("OpenCV could not encode a JPEG")
        key = self.spec.published_as
        text = base64.b64encode(jpeg.tobytes()).decode()
        self._last = json.dumps({"timestamps": {key: time.time()}, "images": {key: text}}).encode()
        self._send(self._last)

    def _send(self, message: bytes) -> None:
        if self._socket is not None:
            self._socket.send(message)
        self.frames += 1
        self.sent_at.append(time.monotonic())

    def _add_noise(self) -> None:
        """Sensor noise on a patch that wanders, so that a still scene is never twice the same bytes."""
        height, width = min(NOISE_PX[0], self.spec.height), min(NOISE_PX[1], self.spec.width)
        top, left, above, beside = (
            int(self._random.integers(high + 1))
            for high in (
                self.spec.height - height,
                self.spec.width - width,
                NOISE_POOL[0] - height,
                NOISE_POOL[1] - width,
            )
        )
        patch = self.pixels[top : top + height, left : left + width]
        noise = self._noise[above : above + height, beside : beside + width]
        patch[:] = np.clip(patch + noise, 0, 255)


class Cameras:
    """Draws and publishes every camera from one thread, which owns the OpenGL context."""

    def __init__(
        self, dynamics: Dynamics, specs: Sequence[CameraSpec], goals: WireLog, *, stamp: bool = False, seed: int = 0
    ) -> None:
        self._dynamics = dynamics
        self._goals = goals
        self._stamp = stamp
        self._state = mujoco.MjData(dynamics.scene.model)
        model = dynamics.scene.model
        self._streams: dict[str, _Stream] = {}
        for index, spec in enumerate(specs):
            camera_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, spec.name)
            if camera_id < 0:
                raise BadInput(
                    f"The virtual scene has no camera {spec.name!r}.", "Its cameras are front, wrist and top."
                )
            self._streams[spec.name] = _Stream(spec, camera_id, seed + index)
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="cameras", daemon=True)

    def start(self) -> None:
        """Returns when every camera has published a frame. Raises what stopped it from doing so."""
        self._thread.start()
        if not self._ready.wait(FIRST_FRAME_S) and self._failure is None:
            raise RuntimeError(f"No frame was drawn within {FIRST_FRAME_S:g} s")
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(JOIN_S)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def set_fault(self, name: str | None, fault: CameraFault) -> None:
        """For one camera, or for all with `None`. Takes effect at the next frame."""
        if name is not None and name not in self._streams:
            raise BadInput(f"There is no virtual camera {name!r}.", f"Cameras: {', '.join(self._streams) or 'none'}.")
        for stream in self._streams.values():
            if name in (None, stream.spec.name):
                stream.fault = fault

    def report(self) -> dict[str, dict[str, Any]]:
        """Per camera: frames so far, measured fps, fault."""
        report = {}
        for name, stream in self._streams.items():
            times = list(stream.sent_at)
            span = times[-1] - times[0] if len(times) > 1 else 0.0
            fps = (len(times) - 1) / span if span else 0.0
            report[name] = {"frames": stream.frames, "fps": round(fps, 2), "fault": stream.fault.value}
        return report

    def _run(self) -> None:
        try:
            self._draw_until_stopped()
        except BaseException as error:
            self._failure = error  # `start` raises it; later the station sees that the thread died
            self._ready.set()
            raise
        finally:
            for stream in self._streams.values():
                stream.close()

    def _draw_until_stopped(self) -> None:
        streams = list(self._streams.values())
        painter = _Painter(self._dynamics.scene.model, streams)
        try:
            for stream in streams:
                stream.open()
                stream.due_s = time.monotonic()
            while streams and not self._stop.is_set():
                stream = min(streams, key=lambda each: each.due_s)
                ahead = stream.due_s - time.monotonic()
                if ahead > 0:
                    self._stop.wait(ahead)
                    continue
                stream.due_s += 1 / stream.spec.fps
                if ahead < -RESYNC_S:
                    stream.due_s = time.monotonic()
                if stream.wants_drawing():
                    count, now_ms = self._goals.count, time.monotonic_ns() // 1_000_000
                    self._dynamics.copy_state(self._state)
                    painter.draw(self._state, stream.camera_id, stream.pixels)
                    if self._stamp:
                        write_stamp(stream.pixels, count, now_ms)
                    stream.publish()
                if not self._ready.is_set() and all(each.frames for each in streams):
                    self._ready.set()
        finally:
            painter.close()


class _Painter:
    """MuJoCo's renderer without shadows and reflections, straight into the caller's array."""

    def __init__(self, model: mujoco.MjModel, streams: Sequence[_Stream]) -> None:
        width = max(stream.spec.width for stream in streams)
        height = max(stream.spec.height for stream in streams)
        self._model = model
        self._context = mujoco.GLContext(width, height)
        self._context.make_current()
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._renderer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._renderer)
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._upside_down = {
            (stream.spec.width, stream.spec.height): np.empty_like(stream.pixels) for stream in streams
        }

    def draw(self, state: mujoco.MjData, camera_id: int, into: Image) -> None:
        """Draw RGB (height, width, 3) of the state's positions. Calls into MuJoCo release the interpreter lock."""
        height, width = into.shape[:2]
        rectangle = mujoco.MjrRect(0, 0, width, height)
        raw = self._upside_down[width, height]
        mujoco.mj_kinematics(self._model, state)
        mujoco.mj_camlight(self._model, state)
        self._camera.fixedcamid = camera_id
        mujoco.mjv_updateScene(
            self._model, state, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(rectangle, self._scene, self._renderer)
        mujoco.mjr_readPixels(raw, None, rectangle, self._renderer)
        cv2.flip(raw, 0, into)

    def close(self) -> None:
        self._renderer.free()
        self._context.free()
