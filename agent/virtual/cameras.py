"""The station's side of its cameras: starts the process that draws them, feeds it, and passes faults on."""

import json
import os
import select
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
from agent.virtual.stamp import read_stamp

__all__ = ["CameraFault", "CameraSpec", "Cameras", "read_stamp"]

FIRST_FRAME_S: Final = 30.0  # importing OpenCV and MuJoCo takes seconds on a busy host
ENDING_S: Final = 5.0


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

    def start(self) -> None:
        """Raises BadInput when a port is taken, AgentError when nothing is drawn in time."""
        self._dynamics.on_step = self._pass_on
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agent.virtual.camera_process", msgspec.json.encode(self._job).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._block.fd],
        )
        said = self._first_line()
        if "message" in said:
            raise BadInput(said["message"], said["hint"])

    def stop(self) -> None:
        self._dynamics.on_step = None
        if self._process and self._process.stdin and self._process.stdout:
            self._process.stdin.close()
            try:
                self._process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            self._process = None
        os.close(self._block.fd)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

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
