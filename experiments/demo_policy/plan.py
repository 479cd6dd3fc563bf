"""What each episode is about: where things lie, which disc is touched, and where the arm starts. All from a seed."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from agent.messages import Joints
from agent.virtual.kinematics import Kinematics
from agent.virtual.operator import READY, REST
from agent.virtual.scene import SECTOR_DEG, Pose2, SceneModel
from experiments.demo_policy.recipe import DISCS

FIRST_UNSEEN: Final = 1_000_000
"""Seeds from here on are for evaluation; recording never gets there."""

REACH_M: Final = (0.14, 0.30)
HEIGHT_M: Final = (0.03, 0.20)
PITCH_DEG: Final = (45.0, 90.0)
ROLL_DEG: Final = 20.0
OPEN_PCT: Final = 35.0
CLEARANCE_M: Final = 0.02
PARKED: Final[Joints] = (0.0, -98.0, 95.0, 55.0, 0.0, 5.0)  # safety.park of the shipped configuration
STARTS: Final = ((None, 0.40), (REST, 0.10), (PARKED, 0.10), (READY, 0.05))
"""Shares of starts; None: where the last reach ended. The others are anywhere above the table."""

BESIDE: Final = 0.27
"""Share of recorded episodes that start a little beside the named disc: how to correct a touch that is off, which a
policy needs more often than a person. Evaluation does not start there; it would be too easy."""

BESIDE_M: Final = 0.018  # standard deviation, along the table
BESIDE_HEIGHT_M: Final = (0.008, 0.04)
BESIDE_CLEARANCE_M: Final = 0.002


@dataclass(frozen=True)
class EpisodePlan:
    """One episode. `start` None: from wherever the last one ended."""

    scene_seed: int
    disc: str
    start: Joints | None


class Planner:
    """Makes plans; needs the scene to know which poses an arm can take."""

    def __init__(self, scene: SceneModel) -> None:
        self._scene = scene
        self._kinematics = Kinematics(scene)

    def plan(self, number: int, seed: int = 0) -> EpisodePlan:
        """The plan with this number; always the same. Discs take turns, so that both are named equally often."""
        random = np.random.default_rng((seed, number))
        disc = f"{DISCS[number % len(DISCS)]} disc"
        scene_seed = int(random.integers(FIRST_UNSEEN)) if number < FIRST_UNSEEN else number
        if number < FIRST_UNSEEN and random.random() < BESIDE:
            return EpisodePlan(scene_seed, disc, self.beside(random, self._scene.scatter(scene_seed)[disc]))
        draw = random.random()
        for start, share in STARTS:
            if draw < share:
                return EpisodePlan(scene_seed, disc, start)
            draw -= share
        return EpisodePlan(scene_seed, disc, self.somewhere(random))

    def somewhere(self, random: np.random.Generator) -> Joints:
        """A pose with the fingertip anywhere above the table's middle."""
        while True:
            reach, bearing = random.uniform(*REACH_M), math.radians(random.uniform(-SECTOR_DEG, SECTOR_DEG))
            pose = self._kinematics.solve(
                (0.04 + reach * math.cos(bearing), reach * math.sin(bearing), random.uniform(*HEIGHT_M)),
                pitch_deg=random.uniform(*PITCH_DEG),
                roll_deg=random.uniform(-ROLL_DEG, ROLL_DEG),
                gripper_pct=random.uniform(0, OPEN_PCT),
            )
            if pose and self._kinematics.lowest_m(pose) > CLEARANCE_M:
                return pose

    def beside(self, random: np.random.Generator, place: Pose2) -> Joints:
        """A pose with the fingertip near the table and near a disc that lies there."""
        while True:
            x, y = np.array(place[:2]) + random.normal(0, BESIDE_M, 2)
            pose = self._kinematics.reach((float(x), float(y), random.uniform(*BESIDE_HEIGHT_M)))
            if pose and self._kinematics.lowest_m(pose) > BESIDE_CLEARANCE_M:
                return pose
