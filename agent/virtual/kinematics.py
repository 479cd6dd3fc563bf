"""Inverse kinematics by damped least squares on the MuJoCo model, and the heights that keep an arm off its table."""

import math
from collections.abc import Sequence
from typing import Final

import mujoco
import numpy as np
from numpy.typing import NDArray

from agent.messages import Joints
from agent.virtual.scene import SceneModel, from_radians, to_radians

ITERATIONS: Final = 100
DAMPING: Final = 4e-6  # in m^2 per rad^2: joints near a straight arm must not whip
PROGRESS: Final = 0.98
PATIENCE: Final = 8  # steps without progress: out of reach
POSITION_TOLERANCE_M: Final = 0.001
PITCH_TOLERANCE: Final = 0.01  # of the pointing direction's height
PITCH_WEIGHT_M: Final = 0.1  # one unit of pointing direction counts like this many metres
STEP_RAD: Final = 0.2
START: Final[Joints] = (0.0, 0.0, 20.0, 60.0, 0.0, 5.0)
CLEARANCE_M: Final = 0.002
WAYPOINT_M: Final = 0.01
PITCHES_DEG: Final = (90.0, 80.0, 70.0, 60.0, 50.0)  # below the horizon; steepest first: jaws reach in from above

type Point = tuple[float, float, float]


class Kinematics:
    """Solves poses on a private copy of the simulation state. Not thread safe."""

    def __init__(self, scene: SceneModel) -> None:
        self._scene = scene
        self._model = scene.model
        self._data = mujoco.MjData(scene.model)
        self._low, self._high = scene.model.jnt_range[:6].T + np.array([[0.01], [-0.01]])
        self._jacobian, self._rotation = np.zeros((3, scene.model.nv)), np.zeros((3, scene.model.nv))
        hand = {scene.model.body(name).id for name in ("wrist", "gripper", "jaw")}
        self._hand = [
            geom
            for geom in range(scene.model.ngeom)
            if scene.model.geom_contype[geom] and scene.model.geom_bodyid[geom] in hand
        ]
        self._moving = scene.joint_dof[:4]  # pan, lift, elbow, wrist pitch: four joints for place and pitch

    def forward(self, joints: Joints, site: str = "tip") -> Point:
        """Where a site of the gripper is, in metres."""
        self._set(to_radians(np.array(joints)))
        x, y, z = self._data.site(site).xpos
        return float(x), float(y), float(z)

    def lowest_m(self, joints: Joints) -> float:
        """Height of the lowest solid corner of wrist, gripper and jaw above the table."""
        self._set(to_radians(np.array(joints)))
        up = np.abs(self._data.geom_xmat[self._hand].reshape(-1, 3, 3)[:, 2])
        below = (up * self._model.geom_size[self._hand]).sum(axis=1)
        return float((self._data.geom_xpos[self._hand][:, 2] - below).min())

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
        site_id, gripper = self._data.site(site).id, self._data.body("gripper").id
        place = self._data.site_xpos[site_id]
        forward = self._data.xmat[gripper].reshape(3, 3)[:, 0]
        best, since = np.inf, 0
        for _ in range(ITERATIONS):
            self._set(angles)
            error = np.array([*(np.array(target) - place), (height - forward[2]) * PITCH_WEIGHT_M])
            if np.linalg.norm(error[:3]) < POSITION_TOLERANCE_M and abs(height - forward[2]) < PITCH_TOLERANCE:
                return self._joints(angles)
            miss = float(np.linalg.norm(error))
            best, since = (miss, 0) if miss < best * PROGRESS else (best, since + 1)
            if since > PATIENCE:
                return None
            rows = self._rows(site_id, forward)
            step = rows.T @ np.linalg.solve(rows @ rows.T + DAMPING * np.eye(4), error)
            angles[:4] += np.clip(step, -STEP_RAD, STEP_RAD)
            angles = np.clip(angles, self._low, self._high)
        return None

    def reach(self, target: Point, *, pitches_deg: Sequence[float] = PITCHES_DEG) -> Joints | None:
        """Like `solve` for the fingertip, with the first pitch that works and keeps clear of the table."""
        for pitch in pitches_deg:
            found = self.solve(target, pitch_deg=pitch)
            if found and self.lowest_m(found) >= CLEARANCE_M:
                return found
        return None

    def line(self, start: Point, end: Point) -> tuple[Joints, ...]:
        """Poses of the fingertip along a straight line, at one pitch; empty when part of it is out of reach."""
        steps = max(1, math.ceil(math.dist(start, end) / WAYPOINT_M))
        shares = [share / steps for share in range(steps + 1)]
        points = [tuple(a + (b - a) * share for a, b in zip(start, end, strict=True)) for share in shares]
        for pitch in PITCHES_DEG:
            poses: list[Joints] = []
            for x, y, z in (points[0], points[-1], *points[1:-1]):  # the ends first: they fail first
                found = self.solve((x, y, z), pitch_deg=pitch, start=poses[-1] if poses else START)
                if found is None or self.lowest_m(found) < CLEARANCE_M:
                    break
                poses.append(found)
            else:
                return (poses[0], *poses[2:], poses[1])
        return ()

    def _rows(self, site_id: int, forward: NDArray[np.float64]) -> NDArray[np.float64]:
        """Jacobian of place and (weighted) height of the forward axis with respect to the moving joints. (4, 4)."""
        mujoco.mj_jacSite(self._model, self._data, self._jacobian, self._rotation, site_id)
        turning = self._rotation[:, self._moving]
        nod = (turning[0] * forward[1] - turning[1] * forward[0]) * PITCH_WEIGHT_M  # z of (axis x forward)
        return np.vstack([self._jacobian[:, self._moving], nod])

    def _pan_x(self) -> float:
        return float(self._model.body("shoulder").pos[0])

    def _set(self, angles: NDArray[np.float64]) -> None:
        self._data.qpos[self._scene.joint_qpos] = angles
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)

    @staticmethod
    def _joints(angles: NDArray[np.float64]) -> Joints:
        pan, lift, elbow, flex, roll, gripper = (float(value) for value in from_radians(angles))
        return pan, lift, elbow, flex, roll, gripper
