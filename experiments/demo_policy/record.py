"""Episodes through the teleop path: leader arm, control loop, cameras and recorder of a running agent."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from agent.errors import AgentError, BadInput, Refused
from agent.virtual.kinematics import Kinematics
from agent.virtual.operator import READY
from agent.virtual.scene import SceneModel
from experiments.demo_policy.plan import EpisodePlan, Planner
from experiments.demo_policy.recipe import CUBES, DISCS, Recipe, task_text
from experiments.demo_policy.station import COMMIT_S, RecordingStation

SETTLE_S: Final = 0.15
TOUCHED_M: Final = 0.012
"""A demonstration that ended further from the disc than this is dropped."""

MOVED_M: Final = 0.01  # a cube that was laid under the hand jumps away: such a table is laid anew
MOST_FAILURES: Final = 25  # in a row
MOST_RESTARTS: Final = 3
"""Of the whole station without an episode in between. On a busy host servos answer late: to the agent, a fault."""


class Recording:
    """Records until the dataset holds as many episodes as the recipe wants."""

    def __init__(self, station: RecordingStation, recipe: Recipe) -> None:
        self._station, self._recipe = station, recipe
        scene = SceneModel("so101", DISCS, CUBES)
        self._scene = scene
        self._planner = Planner(scene)
        self._kinematics = Kinematics(scene)

    def run(self, progress: Callable[[int, str], None]) -> None:
        """`progress` hears the number of episodes in the dataset and what became of the last one."""
        done, attempt = self._station.index.count(), 0
        while done < self._recipe.episodes:
            if attempt > MOST_FAILURES:
                raise AgentError(f"{attempt} attempts at episode {done} failed.", "See the agent's log.")
            plan = self._planner.plan(done + attempt * self._recipe.episodes, self._recipe.seed)
            outcome = self._episode(plan)
            done = self._station.index.count()
            attempt = 0 if outcome == "committed" else attempt + 1
            progress(done, outcome)

    def _episode(self, plan: EpisodePlan) -> str:
        station = self._station
        if station.mode() != "teleop":  # a late leader reading on a busy host: the arm holds and wants to be asked
            station.teleop()
        try:
            self._prepare(plan)
        except BadInput as refused:
            station.inject(operator={"pose": READY})
            station.wait_for_hand()
            return refused.message
        try:
            station.client.call("record.start", {"task": task_text(plan.disc)})
        except Refused as refused:
            return refused.message
        try:
            station.inject(operator={"reach": plan.disc})
            station.wait_for_hand()
        except BadInput as refused:
            return self._discard(refused.message)
        if station.mode() != "teleop" or self._miss_m(plan.disc) > TOUCHED_M:
            return self._discard("missed")
        summary = station.client.call("record.stop", {"success": True}, timeout_s=COMMIT_S)
        result = summary["results"][-1]
        return str(result["outcome"] if result["outcome"] == "committed" else result["reason"])

    def _discard(self, reason: str) -> str:
        with contextlib.suppress(Refused):  # the recorder ended it already, because the arm stopped following
            self._station.client.call("record.discard", timeout_s=COMMIT_S)
        return reason

    def _prepare(self, plan: EpisodePlan) -> None:
        station = self._station
        station.inject(scene={"seed": plan.scene_seed})
        if plan.start is not None:
            try:
                station.inject(operator={"pose": plan.start})
            except BadInput:  # not straight from here
                station.inject(operator={"pose": READY})
                station.wait_for_hand()
                station.inject(operator={"pose": plan.start})
            station.wait_for_hand()
        time.sleep(SETTLE_S)  # the follower comes to rest where the leader is; a cube that touches the hand jumps
        lies = station.state()["objects"]
        for name, pose in self._scene.scatter(plan.scene_seed).items():
            if np.hypot(lies[name][0] - pose.x, lies[name][1] - pose.y) > MOVED_M:
                raise BadInput(f"The {name} was moved before the episode began.", "Another table is laid.")

    def _miss_m(self, disc: str) -> float:
        tip = self._kinematics.forward(self._station.follower())
        return float(np.linalg.norm(np.subtract(tip, self._station.state()["objects"][disc])[:2]))


def record(folder: Path, recipe: Recipe, progress: Callable[[int, str], None]) -> Path:
    """The dataset's folder, filled. Goes on where an earlier call ended."""
    from agent.robot.recording.index import DatasetIndex

    dataset = folder / "station" / "datasets" / "reach"
    if dataset.exists() and DatasetIndex(dataset).count() >= recipe.episodes:
        return dataset
    barren = 0
    while True:
        before = DatasetIndex(dataset).count() if dataset.exists() else 0
        try:
            with RecordingStation(folder / "station", recipe.seed) as station:
                Recording(station, recipe).run(progress)
            return dataset
        except AgentError as error:
            after = DatasetIndex(dataset).count() if dataset.exists() else 0
            barren = 0 if after > before else barren + 1
            if barren >= MOST_RESTARTS:
                raise
            progress(after, f"{error.message} Starting the station again.")
