"""The SO-100 and SO-101 as rigid bodies, drawn and touched with hand-written boxes instead of meshes.

Every body frame is parallel to the world when all joints are zero, which is lerobot's calibrated middle: upper arm
upright, forearm and gripper pointing forward (x), the moving jaw above the fixed one. Offsets, masses, centres of
mass and inertias were transformed into these frames from MuJoCo Menagerie's `robotstudio_so101` and
`trs_so_arm100` (see NOTICE); actuator and joint constants are those of its `sts3215` class, fitted at P=16.
The shapes are this project's own, sized by the published parts.

Approximated in the SO-100: it gets the joint ranges, jaw faces and wrist camera of the SO-101.
"""

from dataclasses import dataclass
from typing import Final, Literal

import mujoco
import numpy as np

from agent.messages import JOINTS

type Vector = tuple[float, float, float]
type ArmModel = Literal["so100", "so101"]

STALL_TORQUE_NM: Final = 2.94  # 30 kg cm at 12 V; also the force range of the fitted actuator
KP_NM: Final = 998.22
KV_NMS: Final = 2.731
JOINT_DAMPING: Final = 0.60
JOINT_FRICTION: Final = 0.052
JOINT_ARMATURE: Final = 0.028

RANGE_DEG: Final = ((-110, 110), (-100, 100), (-96.8, 96.8), (-95, 95), (-157, 163), (-10, 100))
"""Mechanical joint ranges, in the order of JOINTS. The gripper's -10 to 100 degrees are 0 to 100 percent."""

_AXES: Final[tuple[Vector, ...]] = ((0, 0, -1), (0, 1, 0), (0, 1, 0), (0, 1, 0), (-1, 0, 0), (0, -1, 0))
"""Signs as lerobot's: positive pans right, leans forward, bends down, nods down, rolls left, opens."""

TABLE_BIT: Final = 1
ARM_BIT: Final = 2
OBJECT_BIT: Final = 4

_MOTOR_BLACK: Final = (0.09, 0.09, 0.10, 1.0)
_PAD_FRICTION: Final = (1.2, 0.01, 0.001)  # printed jaws with the usual strip of grip tape


@dataclass(frozen=True)
class Link:
    """One moving body. Inertia about the centre of mass: xx yy zz xy xz yz, in kg m^2."""

    body: str
    offset: Vector  # from the parent's origin
    mass_kg: float
    com: Vector
    inertia: tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Box:
    """A part drawn on a body: centre, half sizes, and an optional tilt about y."""

    body: str
    centre: Vector
    half: Vector
    motor: bool = False
    solid: bool = False  # touches table and objects
    tilt_deg: float = 0.0


@dataclass(frozen=True)
class ArmShape:
    """What tells one model from another."""

    plastic: tuple[float, float, float, float]
    links: tuple[Link, ...]
    boxes: tuple[Box, ...]
    tip: Vector  # where a fingertip touches, on the gripper body
    grasp: Vector  # between the jaws, on the gripper body


_SO101_LINKS: Final = (
    Link("shoulder", (0.03884, 0, 0.0624), 0.100, (0.03076, 0, 0.02527), (83.8e-6, 81.0e-6, 24.0e-6, 0, -1.2e-6, 0)),
    Link(
        "upper_arm",
        (0.0304, -0.01828, 0.0542),
        0.103,
        (0.00838, 0.01841, 0.08985),
        (147.3e-6, 142.5e-6, 40.8e-6, 0, -19.8e-6, 0),
    ),
    Link(
        "lower_arm",
        (0.028, 0, 0.11257),
        0.104,
        (0.09807, 0.01828, 0.00324),
        (28.7e-6, 145.3e-6, 159.8e-6, -1.3e-6, -7.4e-6, 0),
    ),
    Link(
        "wrist", (0.1349, 0, 0.0052), 0.079, (0.03861, 0.02812, 0.0001), (25.4e-6, 21.0e-6, 36.8e-6, -3.6e-6, 0, 0.1e-6)
    ),
    Link("gripper", (0.0611, 0.0181, 0), 0.087, (0.02519, 0.0002, 0.0002), (34.5e-6, 43.4e-6, 27.5e-6, 0, 5.7e-6, 0)),
    Link("jaw", (0.0234, 0.0178, 0.0211), 0.012, (0.03002, -0.0192, -0.0025), (1.9e-6, 5.3e-6, 6.6e-6, 0, 0, 0)),
)

_SO100_LINKS: Final = (
    Link("shoulder", (0.0452, 0, 0.0165), 0.119, (0.0311, 0, 0.0591), (58.6e-6, 59.0e-6, 32.1e-6, 0, -4.6e-6, 0)),
    Link(
        "upper_arm", (0.0306, 0, 0.1025), 0.162, (0.0031, 0, 0.0702), (213.3e-6, 167.2e-6, 70.2e-6, 0, 2.1e-6, 1.0e-6)
    ),
    Link(
        "lower_arm",
        (0.028, 0, 0.11257),
        0.148,
        (0.0768, -0.0034, 0.0014),
        (50.9e-6, 105.3e-6, 138.8e-6, -11.7e-6, 0, 0),
    ),
    Link("wrist", (0.1349, 0, 0.0052), 0.066, (0.0352, -0.0085, 0), (23.8e-6, 19.6e-6, 34.5e-6, 0, 0, 0)),
    Link("gripper", (0.0601, 0, 0), 0.093, (0.0280, 0.0005, -0.0055), (30.4e-6, 50.2e-6, 43.3e-6, 0, 7.1e-6, 0)),
    Link("jaw", (0.0244, 0, 0.0202), 0.020, (0.0303, -0.0005, -0.0016), (3.0e-6, 9.0e-6, 11.1e-6, 0, 0, 0)),
)


def _boxes(lateral: float, jaw_y: float, shoulder_drop: float) -> tuple[Box, ...]:
    """The shared parts. `lateral`: how far the arm's centre plane lies from its joint frames (the SO-101 hangs its
    links beside the joint origin, the SO-100 centres them); `shoulder_drop`: the SO-100's pan joint sits lower."""
    y = lateral
    return (
        Box("base", (0.004, 0, 0.006), (0.050, 0.042, 0.006)),
        Box("base", (0.012, 0, 0.030), (0.034, 0.027, 0.020)),
        Box("base", (0.030, 0, 0.044 - shoulder_drop / 2), (0.0175, 0.0175, 0.0124), motor=True),
        Box("base", (-0.032, 0, 0.044), (0.003, 0.022, 0.026), motor=True),
        Box("shoulder", (0.012, 0, 0.004 + shoulder_drop), (0.034, 0.024, 0.006)),
        Box("shoulder", (0.030, 0, 0.028 + shoulder_drop), (0.0226, 0.0175, 0.0180), motor=True),
        Box("shoulder", (0.030, 0.027, 0.034 + shoulder_drop), (0.018, 0.004, 0.030)),
        Box("shoulder", (0.030, -0.027, 0.034 + shoulder_drop), (0.018, 0.004, 0.030)),
        Box("upper_arm", (0.000, y + 0.023, 0.052), (0.014, 0.004, 0.062)),
        Box("upper_arm", (0.000, y - 0.023, 0.052), (0.014, 0.004, 0.062)),
        Box("upper_arm", (-0.008, y, 0.062), (0.006, 0.022, 0.040)),
        Box("upper_arm", (0.0155, y, 0.1126), (0.0226, 0.0175, 0.0124), motor=True),
        Box("lower_arm", (0.054, y + 0.023, 0.000), (0.062, 0.004, 0.012), solid=True),
        Box("lower_arm", (0.054, y - 0.023, 0.000), (0.062, 0.004, 0.012), solid=True),
        Box("lower_arm", (0.060, y, -0.006), (0.042, 0.022, 0.005)),
        Box("lower_arm", (0.1224, y, 0.0052), (0.0226, 0.0175, 0.0124), motor=True),
        Box("wrist", (0.016, y + 0.023, 0.000), (0.022, 0.004, 0.012), solid=True),
        Box("wrist", (0.016, y - 0.023, 0.000), (0.022, 0.004, 0.012), solid=True),
        Box("wrist", (0.042, y, 0.000), (0.0175, 0.0226, 0.0124), motor=True, solid=True),
        Box("gripper", (0.004, 0, -0.002), (0.005, 0.022, 0.020)),
        Box("gripper", (0.026, 0, 0.0110), (0.0200, 0.0150, 0.0124), motor=True, solid=True),
        Box("gripper", (0.030, 0, -0.0080), (0.024, 0.016, 0.006), solid=True),
        Box("gripper", (0.058, 0, -0.0150), (0.012, 0.010, 0.0045), solid=True, tilt_deg=-8),
        Box("gripper", (0.083, 0, -0.0120), (0.020, 0.0070, 0.0030), solid=True),
        Box("gripper", (0.020, 0.034, 0.000), (0.006, 0.014, 0.008)),
        Box("gripper", (0.041, 0.052, 0.0025), (0.009, 0.010, 0.012), motor=True),
        Box("jaw", (0.006, -jaw_y, 0.000), (0.011, 0.012, 0.008)),
        Box("jaw", (0.029, -jaw_y, -0.0025), (0.016, 0.009, 0.004), solid=True, tilt_deg=10),
        Box("jaw", (0.060, -jaw_y, -0.0070), (0.020, 0.0070, 0.0030), solid=True, tilt_deg=6),
    )


SHAPES: Final[dict[ArmModel, ArmShape]] = {
    "so101": ArmShape(
        (1.0, 0.82, 0.12, 1.0),
        _SO101_LINKS,
        _boxes(0.0183, 0.0178, 0.0),
        tip=(0.101, 0, -0.009),
        grasp=(0.088, 0, 0.006),
    ),
    "so100": ArmShape(
        (1.0, 0.331, 0.0, 1.0), _SO100_LINKS, _boxes(0.0, 0.0, 0.046), tip=(0.101, 0, -0.009), grasp=(0.088, 0, 0.006)
    ),
}


def add_arm(spec: mujoco.MjSpec, model: ArmModel, height_m: float) -> None:
    """Bolt an arm to the world at the origin, its base `height_m` above the table, with actuators named like JOINTS."""
    shape = SHAPES[model]
    bodies = {"base": spec.worldbody.add_body(name="base", pos=[0, 0, height_m])}
    parent = bodies["base"]
    for index, link in enumerate(shape.links):
        low, high = np.radians(RANGE_DEG[index])
        body = parent.add_body(name=link.body, pos=link.offset)
        body.explicitinertial = True
        body.mass, body.ipos, body.fullinertia = link.mass_kg, link.com, link.inertia
        body.add_joint(
            name=JOINTS[index],
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=_AXES[index],
            range=[low, high],
            limited=True,
            damping=[JOINT_DAMPING, 0, 0],
            frictionloss=JOINT_FRICTION,
            armature=JOINT_ARMATURE,
        )
        _add_actuator(spec, JOINTS[index])
        bodies[link.body] = parent = body
    for box in shape.boxes:
        _add_box(bodies[box.body], box, shape.plastic)
    bodies["gripper"].add_site(name="tip", pos=shape.tip, group=3)
    bodies["gripper"].add_site(name="grasp", pos=shape.grasp, group=3)


def _add_actuator(spec: mujoco.MjSpec, joint: str) -> None:
    spec.add_actuator(
        name=joint,
        target=joint,
        trntype=mujoco.mjtTrn.mjTRN_JOINT,
        gaintype=mujoco.mjtGain.mjGAIN_FIXED,
        biastype=mujoco.mjtBias.mjBIAS_AFFINE,
        gainprm=[KP_NM] + [0.0] * 9,
        biasprm=[0.0, -KP_NM, -KV_NMS] + [0.0] * 7,
        forcerange=[-STALL_TORQUE_NM, STALL_TORQUE_NM],
        forcelimited=True,
    )


def _add_box(body: mujoco.MjsBody, box: Box, plastic: tuple[float, float, float, float]) -> None:
    half_tilt = np.radians(box.tilt_deg) / 2
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=box.centre,
        size=box.half,
        quat=[np.cos(half_tilt), 0, np.sin(half_tilt), 0],
        rgba=_MOTOR_BLACK if box.motor else plastic,
        mass=0,
        contype=ARM_BIT if box.solid else 0,
        conaffinity=TABLE_BIT if box.solid else 0,
        condim=4,
        friction=_PAD_FRICTION,
        solref=[0.01, 1],
    )
