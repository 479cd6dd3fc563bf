"""Success on unseen starts in the simulator, for the curve while learning and for controls.

The real stack has the last word.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import numpy as np
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from experiments.demo_policy.plan import FIRST_UNSEEN, Planner
from experiments.demo_policy.recipe import CHUNK, CONTROL_HZ, DISCS, NEAR_M, task_text
from experiments.demo_policy.simulator import Image, Simulator

LONGEST_S: Final = 6.0
REPLAN_TICKS: Final = 8
LATE_TICKS: Final = 2  # from the pictures to the first action of the chunk made from them
RESTS_TICKS: Final = 10  # within NEAR_M of a disc's middle for this long: that disc was chosen
GREY: Final = 128


class Control(StrEnum):
    """What is taken away to see whether the policy needed it."""

    NONE = "as trained"
    GREY = "grey images"
    SWAPPED = "the other disc named"
    HIDDEN = "named disc hidden"
    FRONT_ONLY = "wrist camera grey"
    WRIST_ONLY = "front camera grey"


class Evaluation:
    """Runs a policy in closed loop: whole chunks, replanned while they are carried out, as the asynchronous queue does.

    `processors` are lerobot's pre- and post-processor of the policy.
    """

    def __init__(self, simulator: Simulator, processors: tuple[Any, Any]) -> None:
        self._simulator = simulator
        self._before, self._after = processors
        self._planner = Planner(simulator.scene)

    def run(
        self,
        policy: SmolVLAPolicy,
        starts: int,
        control: Control = Control.NONE,
        first: int = 0,
        heard: Callable[[int, float], None] | None = None,
    ) -> dict[str, float]:
        """Shares of `starts`: `success`, the first disc that the fingertip rests at is the named one; `other`, it is
        another; `stays`, it is at the named disc when time is up. And how far it then is from there, in centimetres."""
        hits, others, stays, misses = 0, 0, 0, []
        for number in range(first, first + starts):
            torch.manual_seed(number)  # of the flow's noise
            named, chosen, miss_m = self._one(policy, number, control)
            hits += chosen == named
            others += chosen not in (None, named)
            stays += miss_m < NEAR_M
            misses.append(miss_m)
            if heard:
                heard(number, miss_m)
        return {
            "success": hits / starts,
            "other": others / starts,
            "stays": stays / starts,
            "median_cm": float(np.median(misses)) * 100,
            "p90_cm": float(np.quantile(misses, 0.9)) * 100,
            "starts": float(starts),
        }

    def _one(self, policy: SmolVLAPolicy, number: int, control: Control) -> tuple[str, str | None, float]:
        simulator = self._simulator
        plan = self._planner.plan(FIRST_UNSEEN + number)
        places = simulator.scene.scatter(plan.scene_seed)
        # Where nothing else is planned an episode starts where the last one ended; the first of all starts somewhere.
        start = plan.start or self._ended or self._planner.somewhere(np.random.default_rng(number))
        simulator.reset(start, places)
        if control is Control.HIDDEN:
            simulator.hide(plan.disc)
        other = next(f"{disc} disc" for disc in DISCS if f"{disc} disc" != plan.disc)
        text = task_text(other if control is Control.SWAPPED else plan.disc)
        chunk = np.tile(simulator.joints(), (CHUNK, 1))
        due: dict[int, tuple[int, Any]] = {}
        made, rests, chosen = 0, 0, None
        for tick in range(round(LONGEST_S * CONTROL_HZ)):
            if tick % REPLAN_TICKS == 0:
                due[tick + LATE_TICKS] = (tick, self.chunk(policy, text, control))
            if tick in due:
                made, chunk = due.pop(tick)
            simulator.tick(chunk[min(tick - made, CHUNK - 1)])
            at = next((disc for disc in simulator.scene.discs if simulator.near(places[disc])), None)
            rests = rests + 1 if at else 0
            if rests == RESTS_TICKS and chosen is None:
                chosen = at
        self._ended = tuple(simulator.joints().tolist())
        return plan.disc, chosen, simulator.miss_m(places[plan.disc])

    def chunk(self, policy: SmolVLAPolicy, text: str, control: Control = Control.NONE) -> Any:
        """Goals for the next CHUNK ticks, (CHUNK, 6), from what the simulator shows now."""
        simulator = self._simulator
        observation: dict[str, Any] = {"observation.state": torch.from_numpy(simulator.joints()), "task": text}
        for camera, image in simulator.images().items():
            observation[f"observation.images.{camera}"] = _picture(_spoiled(image, camera, control))
        return self._after(policy.predict_action_chunk(self._before(observation)))[0].numpy()

    _ended: Any = None


def _spoiled(image: Image, camera: str, control: Control) -> Image:
    blind = control is Control.GREY or (control, camera) in (
        (Control.FRONT_ONLY, "wrist"),
        (Control.WRIST_ONLY, "front"),
    )
    return np.full_like(image, GREY) if blind else image


def _picture(image: Image) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255
