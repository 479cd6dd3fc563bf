"""A table with an arm bolted to it, coloured discs, cubes, and cameras that see them. Poses come from a seed."""

import math
from typing import Final, NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from agent.messages import JOINTS
from agent.virtual.arm_model import OBJECT_BIT, RANGE_DEG, TABLE_BIT, ArmModel, add_arm

TIMESTEP_S: Final = 0.002
BOARD_M: Final = 0.02  # the base is screwed to a board of this thickness
CUBE_HALF_M: Final = 0.0125
CUBE_KG: Final = 0.02
DISC_RADIUS_M: Final = 0.03
DISC_HALF_M: Final = 0.001

COLOURS: Final = {
    "red": (0.85, 0.08, 0.08, 1.0),
    "blue": (0.08, 0.20, 0.85, 1.0),
    "green": (0.05, 0.55, 0.15, 1.0),
    "purple": (0.50, 0.10, 0.60, 1.0),
    "white": (0.95, 0.95, 0.95, 1.0),
}

DISCS: Final = ("blue",)
CUBES: Final = ("red",)
"""What lies on the table unless asked for otherwise. A colour may be used once as a disc and once as a cube."""

REACH_M: Final = (0.19, 0.30)  # from the pan axis: a fingertip pointing down gets there
SECTOR_DEG: Final = 45.0  # to either side of straight ahead
SEPARATION_M: Final = 0.075  # centre to centre: a disc's radius, a cube's half diagonal, and room for the jaws
PLACING_TRIES: Final = 1000
IMAGE_PX: Final = (640, 480)

_FOV_FRONT_DEG: Final = 46.0
_FOV_WRIST_DEG: Final = 62.0


class Pose2(NamedTuple):
    """Where something lies on the table: metres from the arm's base, yaw in radians."""

    x: float
    y: float
    yaw: float = 0.0


class SceneModel:
    """The compiled scene and where its parts are found in MuJoCo's arrays."""

    def __init__(
        self,
        arm: ArmModel,
        discs: tuple[str, ...] = DISCS,
        cubes: tuple[str, ...] = CUBES,
    ) -> None:
        self.arm = arm
        self.disc_colours, self.cube_colours = discs, cubes
        self.discs = tuple(f"{colour} disc" for colour in discs)
        self.cubes = tuple(f"{colour} cube" for colour in cubes)
        self.model = _compile(arm, discs, cubes)
        self.joint_qpos = np.array([self.model.joint(name).qposadr[0] for name in JOINTS])
        self.joint_dof = np.array([self.model.joint(name).dofadr[0] for name in JOINTS])
        self.actuators = np.array([self.model.actuator(name).id for name in JOINTS])
        self._pan_x = float(self.model.body("shoulder").pos[0])

    @property
    def objects(self) -> tuple[str, ...]:
        return self.discs + self.cubes

    def scatter(self, seed: int) -> dict[str, Pose2]:
        """Reachable, well separated places for every object; the same for the same seed."""
        random = np.random.default_rng(seed)
        placed: dict[str, Pose2] = {}
        for name in self.objects:
            for _ in range(PLACING_TRIES):
                reach = random.uniform(*REACH_M)
                bearing = math.radians(random.uniform(-SECTOR_DEG, SECTOR_DEG))
                yaw = random.uniform(-math.pi / 4, math.pi / 4)
                pose = Pose2(self._pan_x + reach * math.cos(bearing), reach * math.sin(bearing), yaw)
                if all(math.dist(pose[:2], other[:2]) >= SEPARATION_M for other in placed.values()):
                    placed[name] = pose
                    break
            else:
                raise ValueError(f"No room for {name} among {len(placed)} objects")
        return placed

    def place(self, data: mujoco.MjData, poses: dict[str, Pose2]) -> None:
        """Put objects on the table, at rest."""
        for name, pose in poses.items():
            quat = [math.cos(pose.yaw / 2), 0, 0, math.sin(pose.yaw / 2)]
            if name in self.discs:
                mocap = self.model.body(name).mocapid[0]
                data.mocap_pos[mocap] = [pose.x, pose.y, DISC_HALF_M]
                data.mocap_quat[mocap] = quat
            else:
                joint = self.model.joint(name)
                start, dof = joint.qposadr[0], joint.dofadr[0]
                data.qpos[start : start + 7] = [pose.x, pose.y, CUBE_HALF_M, *quat]
                data.qvel[dof : dof + 6] = 0

    def where(self, data: mujoco.MjData) -> dict[str, tuple[float, float, float]]:
        """Position of every object's centre, in metres."""
        return {name: tuple(float(value) for value in data.body(name).xpos) for name in self.objects}  # type: ignore[misc]


def to_radians(joints: NDArray[np.float64]) -> NDArray[np.float64]:
    """Joint values as lerobot's (degrees, gripper in percent) to model angles. Shape (6,)."""
    angles = np.asarray(joints, dtype=float).copy()
    low, high = RANGE_DEG[-1]
    angles[-1] = low + angles[-1] * (high - low) / 100
    radians: NDArray[np.float64] = np.radians(angles)
    return radians


def from_radians(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `to_radians`. Shape (6,)."""
    joints = np.degrees(angles)
    low, high = RANGE_DEG[-1]
    joints[-1] = (joints[-1] - low) * 100 / (high - low)
    return joints


def _compile(arm: ArmModel, discs: tuple[str, ...], cubes: tuple[str, ...]) -> mujoco.MjModel:
    spec = mujoco.MjSpec()
    spec.modelname = f"virtual {arm}"
    spec.compiler.degree = False
    spec.option.timestep = TIMESTEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10  # keeps a held cube from creeping out of the jaws
    visual = spec.visual
    visual.global_.offwidth, visual.global_.offheight = IMAGE_PX
    visual.quality.offsamples = 0  # software rendering: every sample costs
    visual.headlight.ambient = [0.45, 0.45, 0.45]
    visual.headlight.diffuse = [0.35, 0.35, 0.35]
    spec.stat.extent = 1.0  # clipping distances are multiples of it
    visual.map.znear = 0.01  # the jaws are 5 cm from the wrist camera
    visual.map.zfar = 5
    _add_table(spec)
    add_arm(spec, arm, BOARD_M)
    for colour in discs:
        _add_disc(spec, colour)
    for colour in cubes:
        _add_cube(spec, colour)
    _add_cameras(spec)
    return spec.compile()


def _add_table(spec: mujoco.MjSpec) -> None:
    world = spec.worldbody
    world.add_light(pos=[0.2, 0.5, 1.4], dir=[0.1, -0.35, -1], castshadow=False, diffuse=[0.5, 0.5, 0.5])
    # Seen as boxes, felt as a plane: drawing a plane costs three times as much, and contacts with it are steadier.
    for name, centre, size, rgba in (
        ("table top", (0.25, 0, -0.02), (0.70, 0.80, 0.02), (0.72, 0.68, 0.60, 1)),
        ("wall", (-0.60, 0, 0.4), (0.02, 2.5, 1.2), (0.58, 0.62, 0.66, 1)),
    ):
        world.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=centre,
            size=size,
            rgba=rgba,
            contype=0,
            conaffinity=0,
        )
    world.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[1, 1, 0.01],
        group=3,
        contype=TABLE_BIT,
        conaffinity=0,
        friction=[1, 0.005, 0.0001],
    )
    half = BOARD_M / 2
    world.add_geom(
        name="board",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[0.075, 0.07, half],
        pos=[0.0, 0, half],
        rgba=[0.45, 0.33, 0.22, 1],
        contype=TABLE_BIT,
        conaffinity=0,
    )


def _add_disc(spec: mujoco.MjSpec, colour: str) -> None:
    disc = spec.worldbody.add_body(name=f"{colour} disc", mocap=True)
    disc.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[DISC_RADIUS_M, DISC_HALF_M, 0],
        rgba=COLOURS[colour],
        contype=0,
        conaffinity=0,
    )


def _add_cube(spec: mujoco.MjSpec, colour: str) -> None:
    cube = spec.worldbody.add_body(name=f"{colour} cube", pos=[0.25, 0, CUBE_HALF_M])
    cube.add_freejoint(name=f"{colour} cube")
    cube.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[CUBE_HALF_M] * 3,
        mass=CUBE_KG,
        rgba=COLOURS[colour],
        contype=OBJECT_BIT,
        conaffinity=7,
        condim=4,
        friction=[1, 0.01, 0.001],
        solref=[0.01, 1],
    )


def _add_cameras(spec: mujoco.MjSpec) -> None:
    _add_camera(spec.worldbody, "front", (0.66, 0.0, 0.47), (0.17, 0.0, 0.06), (0, 0, 1), _FOV_FRONT_DEG)
    _add_camera(spec.worldbody, "top", (0.24, 0.0, 0.80), (0.22, 0.0, 0.0), (1, 0, 0), _FOV_FRONT_DEG)
    # The SO-101's printed mount: beside the jaws, looking along them. Place and direction from Menagerie's wrist_cam.
    _add_camera(
        spec.body("gripper"), "wrist", (0.045, 0.055, 0.0027), (0.129, 0.001, 0.0), (0.54, 0.84, 0), _FOV_WRIST_DEG
    )


def _add_camera(
    body: mujoco.MjsBody,
    name: str,
    at: tuple[float, float, float],
    towards: tuple[float, float, float],
    up: tuple[float, float, float],
    fov_deg: float,
) -> None:
    back = np.subtract(at, towards)
    back /= np.linalg.norm(back)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([right, np.cross(back, right), back]).ravel())
    body.add_camera(name=name, pos=at, quat=quat, fovy=fov_deg)
