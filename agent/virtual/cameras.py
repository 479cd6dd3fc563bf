"""The station's side of its cameras: starts the process that draws them, feeds it, and passes faults on."""

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import mujoco

from agent.errors import AgentError, BadInput
from agent.virtual.bus import WireLog
from agent.virtual.camera_block import CameraBlock, CameraFault, CameraSpec, Job, Moment
from agent.virtual.dynamics import Dynamics
from agent.virtual.realtime import as_a_program
from agent.virtual.stamp import read_stamp

__all__ = ["CameraFault", "CameraSpec", "Cameras", "read_stamp"]

FIRST_FRAME_S: Final = 30.0  # importing OpenCV and MuJoCo takes seconds on a busy host
ENDING_S: Final = 5.0
RARELY_S: Final = 60.0  # a second crash within this time is no accident


class Cameras:
    """The cameras of one station. `start` returns when each of them has published a frame."""

    def __init__(
        self, dynamics: Dynamics, specs: Sequence[CameraSpec], goals: WireLog, *, stamp: bool = False, seed: int = 0
    ) -> None:
        scene = dynamics.scene
        for spec in specs:
            if mujoco.mj_name2id(scene.model, mujoco.mjtObj.mjOBJ_CAMERA, spec.name) < 0:
                raise BadInput(
                    f"The virtual scene has no camera {spec.name!r}.", "Its cameras are front, wrist and top."
                )
        self._names = [spec.name for spec in specs]
        self._goals = goals
        self._dynamics = dynamics
        self._block = CameraBlock.create(scene, len(specs))
        self._job = Job(
            arm=scene.arm,
            discs=scene.disc_colours,
            cubes=scene.cube_colours,
            cameras=tuple(specs),
            stamp=stamp,
            seed=seed,
            memory_fd=self._block.fd,
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._crashed_s = -math.inf

    def start(self) -> None:
        """Raises BadInput when a port is taken, AgentError when nothing is drawn in time."""
        self._dynamics.on_step = self._pass_on
        self._begin()

    def stop(self) -> None:
        self._dynamics.on_step = None
        self._end()
        os.close(self._block.fd)

    def look_after(self) -> None:
        """Call this now and then. What was killed by a signal is started again, and the cameras are back as after a
        pulled cable: once in many hours native code (MuJoCo's, Mesa's or OpenCV's) crashed over a broken heap, and
        half an experiment was lost to it. Raises AgentError when it ended by itself, or crashes twice in a minute.
        """
        code = self._process.poll() if self._process else None
        if code is None:
            return
        before_s, self._crashed_s = self._crashed_s, time.monotonic()
        if code >= 0 or self._crashed_s - before_s < RARELY_S:
            raise AgentError("The virtual cameras stopped drawing.", "See the error above.")
        name = signal.Signals(-code).name
        sys.stderr.write(f"What draws the virtual cameras was ended by {name}, and is started again.\n")
        self._end()
        self._begin()

    def _begin(self) -> None:
        with as_a_program():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agent.virtual.camera_process", msgspec.json.encode(self._job).decode()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[self._block.fd],
            )
        said = self._first_line()
        if "message" in said:
            raise BadInput(said["message"], said["hint"])

    def _end(self) -> None:
        if self._process and self._process.stdin and self._process.stdout:
            self._process.stdin.close()
            try:
                self._process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            self._process = None

    def set_fault(self, name: str | None, fault: CameraFault) -> None:
        """For one camera, or for all with `None`. Takes effect at the next frame."""
        if name is not None and name not in self._names:
            raise BadInput(f"There is no virtual camera {name!r}.", f"Cameras: {', '.join(self._names)}.")
        for number, each in enumerate(self._names):
            if name in (None, each):
                self._block.set_fault(number, fault)

    def report(self) -> dict[str, dict[str, Any]]:
        """Per camera: frames so far, measured fps, fault."""
        report = {}
        for number, name in enumerate(self._names):
            frames, fps = self._block.progress(number)
            report[name] = {"frames": frames, "fps": fps, "fault": self._block.fault(number).value}
        return report

    def _pass_on(self, data: mujoco.MjData) -> None:
        self._block.write_state(data, Moment(time.monotonic_ns(), self._goals.count))

    def _first_line(self) -> dict[str, Any]:
        if not self._process or not self._process.stdout:
            raise AgentError("The camera process was not started.")
        ready, _, _ = select.select([self._process.stdout], [], [], FIRST_FRAME_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise AgentError(
                "The virtual cameras draw nothing.", "See the error above; are libegl1 and libgl1-mesa-dri installed?"
            )
        said: dict[str, Any] = json.loads(line)
        return said
