"""What the station and its camera process share: one block of memory, written and read without a lock.

The station writes the simulated state and the faults, the camera process writes its counters. Drawing in a process of
its own keeps the interpreter lock of the station free: a servo must answer within a millisecond, also while a picture
is drawn on a busy host.
"""

import mmap
import os
from enum import StrEnum
from typing import Final

import msgspec
import mujoco
import numpy as np

from agent.virtual.scene import SceneModel

ENDED_TRIES: Final = 100  # a writer is done within microseconds


class CameraFault(StrEnum):
    NONE = "none"
    FROZEN = "frozen"  # the same bytes over and over
    STALLED = "stalled"  # connected, but no frames
    GONE = "gone"  # the socket is closed
    GREY = "grey"  # frames as ever, but with nothing on them: a lens cap


_FAULTS: Final = tuple(CameraFault)


class CameraSpec(msgspec.Struct, frozen=True):
    """One camera to serve: `name` is the view in the scene, `published_as` the key in the message."""

    name: str
    address: str
    port: int
    published_as: str
    width: int = 640
    height: int = 480
    fps: int = 30


class Job(msgspec.Struct, frozen=True):
    """All that the camera process needs to know, handed over as JSON."""

    arm: str
    discs: tuple[str, ...]
    cubes: tuple[str, ...]
    cameras: tuple[CameraSpec, ...]
    stamp: bool
    seed: int
    memory_fd: int


class Moment(msgspec.Struct, frozen=True):
    """Of the state that was read: when it was simulated, and how many goals had been on the wire by then."""

    at_ns: int
    goal_count: int


class CameraBlock:
    """Views on the shared memory behind `fd`. Both sides build it from the same scene and number of cameras."""

    def __init__(self, scene: SceneModel, cameras: int, fd: int) -> None:
        model = scene.model
        self.fd = fd
        floats = model.nq + 7 * model.nmocap
        integers = 3 + 3 * cameras
        size = 8 * (floats + integers)
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
        memory = mmap.mmap(fd, size)
        self._state = np.frombuffer(memory, np.float64, floats)
        counters = np.frombuffer(memory, np.int64, integers, 8 * floats)
        self._turn, self._moment = counters[:1], counters[1:3]
        self._fault, self._frames, self._centihertz = counters[3:].reshape(3, cameras)
        self._nq = model.nq

    @classmethod
    def create(cls, scene: SceneModel, cameras: int) -> "CameraBlock":
        return cls(scene, cameras, os.memfd_create("virtual-cameras"))

    def write_state(self, data: mujoco.MjData, moment: Moment) -> None:
        """Publish the state. An odd turn tells readers that it is being written."""
        self._turn[0] += 1
        self._state[: self._nq] = data.qpos
        self._state[self._nq :] = np.hstack([data.mocap_pos, data.mocap_quat]).ravel()
        self._moment[:] = moment.at_ns, moment.goal_count
        self._turn[0] += 1

    def read_state(self, into: mujoco.MjData) -> Moment:
        """Copy the newest whole state."""
        for _ in range(ENDED_TRIES):
            turn = int(self._turn[0])
            into.qpos[:] = self._state[: self._nq]
            mocap = self._state[self._nq :].reshape(-1, 7)
            into.mocap_pos[:], into.mocap_quat[:] = mocap[:, :3], mocap[:, 3:]
            moment = Moment(*self._moment.tolist())
            if turn % 2 == 0 and turn == int(self._turn[0]):
                return moment
        return moment  # the station died while writing; it will not mind

    def set_fault(self, camera: int, fault: CameraFault) -> None:
        self._fault[camera] = _FAULTS.index(fault)

    def fault(self, camera: int) -> CameraFault:
        return _FAULTS[int(self._fault[camera])]

    def set_progress(self, camera: int, frames: int, fps: float) -> None:
        self._frames[camera], self._centihertz[camera] = frames, round(fps * 100)

    def progress(self, camera: int) -> tuple[int, float]:
        """Frames so far, and the measured rate in Hz."""
        return int(self._frames[camera]), float(self._centihertz[camera]) / 100
