"""Inverse kinematics by damped least squares on the MuJoCo model, and the heights that keep an arm off its table."""

from typing import Final

import mujoco
import numpy as np
from numpy.typing import NDArray

from agent.messages import Joints
from agent.virtual.scene import SceneModel, from_radians, to_radians

ITERATIONS: Final = 200
DAMPING: Final = 0.02
POSITION_TOLERANCE_M: Final = 0.001
PITCH_TOLERANCE: Final = 0.01  # of the pointing direction's height
PITCH_WEIGHT_M: Final = 0.1  # one unit of pointing direction counts like this many metres
STEP_RAD: Final = 0.2
START: Final[Joints] = (0.0, 0.0, 20.0, 60.0, 0.0, 5.0)
CLEARANCE_M: Final = 0.003

type Point = tuple[float, float, float]


class Kinematics:
    """Solves poses on a private copy of the simulation state. Not thread safe."""

    def __init__(self, scene: SceneModel) -> None:
        self._scene = scene
        self._model = scene.model
        self._data = mujoco.MjData(scene.model)
        self._low, self._high = scene.model.jnt_range[:6].T + np.array([[0.01], [-0.01]])
        self._moving = scene.joint_dof[:4]  # pan, lift, elbow, wrist pitch: four joints for place and pitch

    def forward(self, joints: Joints, site: str = "tip") -> Point:
        """Where a site of the gripper is, in metres."""
        self._set(to_radians(np.array(joints)))
        x, y, z = self._data.site(site).xpos
        return float(x), float(y), float(z)

    def lowest_m(self, joints: Joints) -> float:
        """Height of the lowest solid corner of wrist, gripper and jaw above the table."""
        self._set(to_radians(np.array(joints)))
        lowest = np.inf
        for geom in range(self._model.ngeom):
            if self._model.geom_contype[geom] and self._model.geom_bodyid[geom] in self._hand_bodies():
                up = np.abs(self._data.geom_xmat[geom].reshape(3, 3)[2])
                lowest = min(lowest, self._data.geom_xpos[geom][2] - float(up @ self._model.geom_size[geom]))
        return float(lowest)

    def solve(
        self,
        target: Point,
        *,
        pitch_deg: float = 90.0,
        roll_deg: float = 0.0,
        gripper_pct: float = 5.0,
        site: str = "tip",
        start: Joints = START,
    ) -> Joints | None:
        """Joints that bring `site` to `target` with the gripper pointing `pitch_deg` below the horizon; None if no."""
        angles = to_radians(np.array([*start[:4], roll_deg, gripper_pct]))
        angles[0] = np.clip(-np.arctan2(target[1], target[0] - self._pan_x()), self._low[0], self._high[0])
        height = -np.sin(np.radians(pitch_deg))
        jacobian, rotation = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        site_id = self._data.site(site).id
        for _ in range(ITERATIONS):
            self._set(angles)
            points = self._data.body("gripper").xmat.reshape(3, 3)[:, 0]  # the gripper's forward axis
            error = np.array([*(np.array(target) - self._data.site(site).xpos), (height - points[2]) * PITCH_WEIGHT_M])
            if np.linalg.norm(error[:3]) < POSITION_TOLERANCE_M and abs(height - points[2]) < PITCH_TOLERANCE:
                return self._joints(angles)
            mujoco.mj_jacSite(self._model, self._data, jacobian, rotation, site_id)
            turn = np.cross(rotation[:, self._moving].T, points)[:, 2] * PITCH_WEIGHT_M
            rows = np.vstack([jacobian[:, self._moving], turn])
            step = rows.T @ np.linalg.solve(rows @ rows.T + DAMPING**2 * 0.01 * np.eye(4), error)
            angles[:4] += np.clip(step, -STEP_RAD, STEP_RAD)
            angles = np.clip(angles, self._low, self._high)
        return None

    def reach(self, target: Point, *, steepest_deg: float = 90.0, flattest_deg: float = 45.0, **how: float) -> Joints | None:
        """Like `solve` with the steepest pitch that works."""
        for pitch in np.arange(steepest_deg, flattest_deg - 1, -5.0):
            roll, gripper = how.get("roll_deg", 0.0), how.get("gripper_pct", 5.0)
            found = self.solve(target, pitch_deg=float(pitch), roll_deg=roll, gripper_pct=gripper)
            if found and self.lowest_m(found) >= CLEARANCE_M:
                return found
        return None

    def _pan_x(self) -> float:
        return float(self._model.body("shoulder").pos[0])

    def _hand_bodies(self) -> set[int]:
        return {self._model.body(name).id for name in ("wrist", "gripper", "jaw")}

    def _set(self, angles: NDArray[np.float64]) -> None:
        self._data.qpos[self._scene.joint_qpos] = angles
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)

    @staticmethod
    def _joints(angles: NDArray[np.float64]) -> Joints:
        pan, lift, elbow, flex, roll, gripper = (float(value) for value in from_radians(angles))
        return pan, lift, elbow, flex, roll, gripper
