"""Situations: in which part of the table the named disc lies, and which disc that is. Stations differ in theirs."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agent.virtual.kinematics import Kinematics
from agent.virtual.scene import SECTOR_DEG, SceneModel
from experiments.demo_policy.episodes import Episodes

PARTS: Final = ("left", "middle", "right")
"""Thirds of the table's sector, from the arm's side."""


def bearing_deg(x: float, y: float, scene: SceneModel) -> float:
    """Of a place on the table, seen from the axis of the arm's first joint; to the left is positive."""
    axis = float(scene.model.body("shoulder").pos[0])
    return math.degrees(math.atan2(y, x - axis))


def part(bearing: float) -> str:
    third = 2 * SECTOR_DEG / len(PARTS)
    return PARTS[int(np.clip((SECTOR_DEG - bearing) // third, 0, len(PARTS) - 1))]


def of_episodes(rows: Episodes, scene: SceneModel) -> list[tuple[str, str]]:
    """Part and task text of each episode. The disc lies where the fingertip ends: farther off, none was kept."""
    kinematics = Kinematics(scene)
    found = []
    for episode in np.unique(rows.episodes):
        last: NDArray[np.int64] = np.flatnonzero(rows.episodes == episode)[-1:]
        row = int(last[0])
        x, y, _ = kinematics.forward(tuple(rows.states[row].tolist()))
        found.append((part(bearing_deg(x, y, scene)), str(rows.texts[rows.tasks[row]])))
    return found
