"""The camera process: draws the scene and publishes it as lerobot's unmodified `ZMQCamera` expects.

That class hands out whatever `cv2.imdecode` returns; encoding RGB pixels without swapping them therefore makes the
arrays it returns RGB. Started by `Cameras` with a `Job`; ends when its standard input does.
"""

import base64
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import cv2
import msgspec
import mujoco
import numpy as np
import zmq

from agent.errors import AgentError, BadInput
from agent.virtual.camera_block import CameraBlock, CameraFault, CameraSpec, Job
from agent.virtual.realtime import draw_like_hardware
from agent.virtual.scene import SceneModel
from agent.virtual.stamp import Image, write_stamp

JPEG_QUALITY: Final = 85
NOISE_PX: Final = (96, 128)
NOISE_SIGMA: Final = 3.0  # of 255: enough to survive JPEG, too little to see
NOISE_POOL: Final = (256, 256)
SEND_QUEUE: Final = 2  # frames; an unread camera must not pile up memory
RATE_WINDOW: Final = 60  # frames
GREY: Final = 128  # of 255
RESYNC_S: Final = 0.5  # further behind than this, frames are skipped


class _Stream:
    """One camera's socket, schedule and noise."""

    def __init__(self, spec: CameraSpec, number: int, camera_id: int, seed: int) -> None:
        self.spec = spec
        self.number = number
        self.camera_id = camera_id
        self.due_s = 0.0
        self.frames = 0
        self.pixels = np.empty((spec.height, spec.width, 3), np.uint8)
        self._sent_at: deque[float] = deque(maxlen=RATE_WINDOW)
        self._random = np.random.default_rng(seed)
        self._noise = self._random.normal(0, NOISE_SIGMA, (*NOISE_POOL, 3)).round().astype(np.int16)
        self._last = b""
        self._socket: zmq.Socket[bytes] | None = None

    @property
    def fps(self) -> float:
        span = self._sent_at[-1] - self._sent_at[0] if len(self._sent_at) > 1 else 0.0
        return (len(self._sent_at) - 1) / span if span else 0.0

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

    def wants_drawing(self, fault: CameraFault) -> bool:
        """Do what the fault says; False when this frame is not drawn."""
        if fault is CameraFault.GONE:
            self.close()
            return False
        if self._socket is None:
            self.open()
        if fault is CameraFault.FROZEN and self._last:
            self._send(self._last)
            return False
        return fault is not CameraFault.STALLED

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
        self._sent_at.append(time.monotonic())

    def _add_noise(self) -> None:
        """Sensor noise on a patch that wanders, so that a still scene is never twice the same bytes."""
        height, width = min(NOISE_PX[0], self.spec.height), min(NOISE_PX[1], self.spec.width)
        room = (
            self.spec.height - height,
            self.spec.width - width,
            NOISE_POOL[0] - height,
            NOISE_POOL[1] - width,
        )
        top, left, above, beside = (int(self._random.integers(most + 1)) for most in room)
        patch = self.pixels[top : top + height, left : left + width]
        patch[:] = np.clip(patch + self._noise[above : above + height, beside : beside + width], 0, 255)


class _Painter:
    """MuJoCo's renderer without shadows and reflections, straight into the caller's array."""

    def __init__(self, model: mujoco.MjModel, specs: Sequence[CameraSpec]) -> None:
        width, height = max(spec.width for spec in specs), max(spec.height for spec in specs)
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
            (spec.width, spec.height): np.empty((spec.height, spec.width, 3), np.uint8) for spec in specs
        }

    def draw(self, state: mujoco.MjData, camera_id: int, into: Image) -> None:
        """Draw RGB (height, width, 3) of the state's positions."""
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


def serve(job: Job, stop: threading.Event) -> None:
    """Draw and publish until `stop`. Says on standard output when every camera has sent a frame."""
    scene = SceneModel(job.arm, job.discs, job.cubes)  # type: ignore[arg-type]
    block = CameraBlock(scene, len(job.cameras), job.memory_fd)
    state = mujoco.MjData(scene.model)
    streams = [
        _Stream(spec, number, scene.model.camera(spec.name).id, job.seed + number)
        for number, spec in enumerate(job.cameras)
    ]
    painter = _Painter(scene.model, job.cameras)
    try:
        for stream in streams:
            stream.open()
            stream.due_s = time.monotonic()
        ready = False
        while not stop.is_set():
            stream = min(streams, key=lambda each: each.due_s)
            ahead = stream.due_s - time.monotonic()
            if ahead > 0:
                stop.wait(ahead)
                continue
            stream.due_s = time.monotonic() if ahead < -RESYNC_S else stream.due_s + 1 / stream.spec.fps
            fault = block.fault(stream.number)
            if stream.wants_drawing(fault):
                moment = block.read_state(state)
                if fault is CameraFault.GREY:
                    stream.pixels[:] = GREY
                else:
                    painter.draw(state, stream.camera_id, stream.pixels)
                if job.stamp and fault is not CameraFault.GREY:
                    write_stamp(stream.pixels, moment.goal_count, moment.at_ns // 1_000_000)
                stream.publish()
            block.set_progress(stream.number, stream.frames, stream.fps)
            if not ready and all(each.frames for each in streams):
                ready = True
                _say({"ready": True})
    finally:
        for stream in streams:
            stream.close()
        painter.close()


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> int:
    faulthandler.enable()  # drawing is native code: where it was, when that crashes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the station ends us
    draw_like_hardware()
    stop = threading.Event()

    def until_the_station_is_gone() -> None:
        os.read(0, 1)  # never anything but the end, also when the station was killed
        stop.set()

    threading.Thread(target=until_the_station_is_gone, daemon=True).start()
    cv2.setNumThreads(1)
    try:
        serve(msgspec.json.decode(sys.argv[1], type=Job), stop)
    except AgentError as error:
        _say({"message": error.message, "hint": error.hint})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
