"""MuJoCo behind the follower's servos: registers become actuator commands, the joint state becomes registers."""

import threading
from collections.abc import Callable
from typing import Final

import mujoco
import numpy as np

from agent.messages import JOINTS
from agent.virtual.arm import VirtualArm
from agent.virtual.arm_model import JOINT_DAMPING, KP_NM, KV_NMS, RANGE_DEG, STALL_TORQUE_NM
from agent.virtual.calibration import GRIPPER
from agent.virtual.scene import Pose2, SceneModel
from agent.virtual.servo import Servo

STALL_DAMPING: Final = 1e4  # a blocked joint: even stall torque turns it by less than 0.02 degrees a second

LOAD_FILTER_S: Final = 0.1
"""Present_Load is a mean of the motor's duty. The stiff fitted gains make the momentary force jump from stop to stop at
every new goal; only its mean says what the joint carries."""


class Dynamics:
    """The plant of a follower on its table. `lock` guards the simulation; it is taken before the bus lock."""

    def __init__(self, scene: SceneModel, follower: VirtualArm, seed: int = 0) -> None:
        self.scene = scene
        self.lock = threading.Lock()
        self.scene_seed = seed
        self.on_step: Callable[[mujoco.MjData], None] | None = None  # shown the state after every step; must be quick
        self._model = scene.model
        self._data = mujoco.MjData(self._model)
        self._follower = follower
        self._settings: list[tuple[float, ...]] = [()] * len(follower.servos)
        # angle = zero_rad + (counts - zero_counts) * rad_per_count, joint by joint
        scale = follower.scale
        low, high = RANGE_DEG[GRIPPER]
        degrees_per_unit = [1.0] * GRIPPER + [(high - low) / 100]
        self._zero_rad: list[float] = np.radians([0.0] * GRIPPER + [float(low)]).tolist()
        self._zero_counts = [scale.to_counts(index, 0.0) for index in range(GRIPPER + 1)]
        self._rad_per_count = [
            float(np.radians(degrees_per_unit[index])) / scale.per_unit(index) for index in range(GRIPPER + 1)
        ]
        scene.place(self._data, scene.scatter(seed))
        with follower.locked() as servos:
            for index, servo in enumerate(servos):
                self._data.qpos[scene.joint_qpos[index]] = self._angle(index, servo.position)
        self._angles: list[float] = self._data.qpos[scene.joint_qpos].tolist()  # after the last step
        self._aims = list(self._angles)  # what the actuators are told, at most as fast as a servo turns
        self._ranges: list[list[float]] = [self._model.joint(name).range.tolist() for name in JOINTS]
        mujoco.mj_forward(self._model, self._data)

    def step(self, dt_s: float) -> None:
        data, scene = self._data, self.scene
        with self.lock:
            with self._follower.locked() as servos:
                for index, servo in enumerate(servos):
                    self._aim(index, servo, dt_s)
            data.ctrl[scene.actuators] = self._aims
            for _ in range(max(1, round(dt_s / self._model.opt.timestep))):
                mujoco.mj_step(self._model, data)
            angles = self._angles = data.qpos[scene.joint_qpos].tolist()
            rates = data.qvel[scene.joint_dof].tolist()
            forces = data.actuator_force[scene.actuators].tolist()
            if self.on_step:
                self.on_step(data)
        with self._follower.locked() as servos:
            for index, servo in enumerate(servos):
                servo.position = self._counts(index, angles[index])
                servo.velocity = rates[index] / self._rad_per_count[index]
                servo.effort += (forces[index] / STALL_TORQUE_NM - servo.effort) * min(1.0, dt_s / LOAD_FILTER_S)
                servo.advance(dt_s)

    def place_arm(self, joints_deg: tuple[float, ...]) -> None:
        """Put the follower's joints there at once, at rest. Same units as `VirtualArm.set_joints_deg`."""
        with self.lock:
            self._follower.set_joints_deg(joints_deg)
            with self._follower.locked() as servos:
                for index, servo in enumerate(servos):
                    self._data.qpos[self.scene.joint_qpos[index]] = self._angle(index, servo.position)
            self._data.qvel[self.scene.joint_dof] = 0
            self._angles = self._data.qpos[self.scene.joint_qpos].tolist()
            self._aims = list(self._angles)
            mujoco.mj_forward(self._model, self._data)

    def scatter(self, seed: int) -> dict[str, Pose2]:
        """Put every object where this seed says."""
        poses = self.scene.scatter(seed)
        self.place(poses)
        self.scene_seed = seed
        return poses

    def place(self, poses: dict[str, Pose2]) -> None:
        with self.lock:
            self.scene.place(self._data, poses)
            mujoco.mj_forward(self._model, self._data)

    def objects(self) -> dict[str, tuple[float, float, float]]:
        with self.lock:
            return self.scene.where(self._data)

    def fingertip(self) -> tuple[float, float, float]:
        """The middle of the follower's fingertip, in metres."""
        with self.lock:
            x, y, z = self._data.site("tip").xpos
            return float(x), float(y), float(z)

    def object_yaw(self, name: str) -> float:
        with self.lock:
            across = self._data.body(name).xmat.reshape(3, 3)[:, 0]
            return float(np.arctan2(across[1], across[0]))

    def _angle(self, index: int, counts: float) -> float:
        return self._zero_rad[index] + (counts - self._zero_counts[index]) * self._rad_per_count[index]

    def _counts(self, index: int, angle: float) -> float:
        return self._zero_counts[index] + (angle - self._zero_rad[index]) / self._rad_per_count[index]

    def _aim(self, index: int, servo: Servo, dt_s: float) -> None:
        """Move one actuator's command towards one servo's goal. Without torque it stays where the joint is."""
        target = servo.target()
        self._tune(index, servo, driving=target is not None)
        if target is None:
            self._aims[index] = self._angles[index]
            return
        most = servo.speed_limit * self._rad_per_count[index] * dt_s
        step = self._angle(index, target) - self._aims[index]
        low, high = self._ranges[index]
        self._aims[index] = min(high, max(low, self._aims[index] + max(-most, min(most, step))))

    def _tune(self, index: int, servo: Servo, *, driving: bool) -> None:
        settings = (float(driving), servo.stiffness, servo.damping, servo.torque_limit, float(servo.stalled))
        if settings == self._settings[index]:
            return
        self._settings[index] = settings
        model, actuator = self._model, self.scene.actuators[index]
        kp = KP_NM * servo.stiffness if driving else 0.0
        model.actuator_gainprm[actuator, 0] = kp
        model.actuator_biasprm[actuator, 1] = -kp
        model.actuator_biasprm[actuator, 2] = -KV_NMS * servo.damping if driving else 0.0
        limit = STALL_TORQUE_NM * servo.torque_limit
        model.actuator_forcerange[actuator] = -limit, limit
        model.dof_damping[self.scene.joint_dof[index]] = STALL_DAMPING if servo.stalled else JOINT_DAMPING
