"""The virtual station's table without ports, processes and clocks: same scene, mechanics and views, stepped by hand.

For renders of random scenes and for the success curve while training. Episodes to learn from come from the real stack.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import mujoco
import numpy as np
from numpy.typing import NDArray

from agent.messages import Joints
from agent.virtual.scene import DISC_HALF_M, IMAGE_PX, Pose2, SceneModel, from_radians, to_radians
from experiments.demo_policy.recipe import CAMERAS, CONTROL_HZ, CUBES, DISCS, NEAR_M

SETTLE_STEPS: Final = 25
GEOMETRIES: Final = 200
OUT_OF_SIGHT: Final = (-1.0, 0.0, -1.0)  # behind the wall and below the table

type Image = NDArray[np.uint8]


class Simulator:
    """One arm at its table. A context manager: it holds a graphics context of the thread that made it."""

    def __init__(self, image_px: int, discs: Sequence[str] = DISCS, cubes: Sequence[str] = CUBES) -> None:
        self.scene = SceneModel("so101", tuple(discs), tuple(cubes))
        self.model = self.scene.model
        self.data = mujoco.MjData(self.model)
        # Drawn at the size to which lerobot shrinks the camera's image. It does so without smoothing, which picks the
        # same points that are drawn here.
        width, height = image_px, image_px * IMAGE_PX[1] // IMAGE_PX[0]
        self._context = mujoco.GLContext(width, height)
        self._context.make_current()
        self.model.vis.global_.offwidth, self.model.vis.global_.offheight = width, height
        self._renderer = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._renderer)
        self._drawn = mujoco.MjvScene(self.model, maxgeom=GEOMETRIES)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._drawn.flags[flag] = 0
        self._option = mujoco.MjvOption()
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._raw: Image = np.empty((height, width, 3), np.uint8)
        self._time_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._renderer.free()
        self._context.free()

    def reset(self, joints: Joints, places: dict[str, Pose2]) -> None:
        """Objects laid out, the arm at rest in a pose."""
        mujoco.mj_resetData(self.model, self.data)
        self.pose(joints, places)
        self.data.ctrl[self.scene.actuators] = self.data.qpos[self.scene.joint_qpos]
        self._time_s = 0.0
        mujoco.mj_step(self.model, self.data, nstep=SETTLE_STEPS)

    def pose(self, joints: Sequence[float], places: dict[str, Pose2]) -> None:
        """The same without dynamics, for a picture."""
        self.scene.place(self.data, places)
        self.data.qpos[self.scene.joint_qpos] = to_radians(np.asarray(joints, float))
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def joints(self) -> NDArray[np.float32]:
        """Measured joints, shape (6,): degrees, gripper in percent."""
        return from_radians(self.data.qpos[self.scene.joint_qpos]).astype(np.float32)

    def tick(self, goal: Sequence[float] | NDArray[np.float32]) -> None:
        """One control period towards a goal in the units of `joints`."""
        low, high = self.model.jnt_range[:6].T
        self.data.ctrl[self.scene.actuators] = np.clip(to_radians(np.asarray(goal, float)), low, high)
        self._time_s += 1 / CONTROL_HZ
        while self.data.time < self._time_s:
            mujoco.mj_step(self.model, self.data)

    def images(self) -> dict[str, Image]:
        """Every camera's view of now, shape (3/4 px, px, 3), RGB."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        return {name: self._draw(name) for name in CAMERAS}

    def miss_m(self, place: Pose2) -> float:
        """From the fingertip to a point on the table, in space."""
        return float(np.linalg.norm(self.data.site("tip").xpos - (place.x, place.y, DISC_HALF_M)))

    def near(self, place: Pose2) -> bool:
        """Whether the fingertip touches a disc that lies, or lay, there."""
        return self.miss_m(place) < NEAR_M

    def hide(self, disc: str) -> None:
        """Put a disc where no camera sees it."""
        self.data.mocap_pos[self.model.body(disc).mocapid[0]] = OUT_OF_SIGHT

    def _draw(self, camera: str) -> Image:
        self._view.fixedcamid = self.model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self.model, self.data, self._option, None, self._view, everything, self._drawn)
        mujoco.mjr_render(self._rectangle, self._drawn, self._renderer)
        mujoco.mjr_readPixels(self._raw, None, self._rectangle, self._renderer)
        return self._raw[::-1].copy()
