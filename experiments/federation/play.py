"""The action expert learns how an arm moves, but not where to: from each render's pose to a pose that has nothing to do
with what lies on the table or is said.

Without it every station would first have to make an expert of random numbers give smooth motions that begin where the
joints are, and averages of what came of that in a few steps would be worth little.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from numpy.typing import NDArray
from torch import nn

from agent.virtual.scene import SceneModel
from experiments.demo_policy import checkpoint, learning
from experiments.demo_policy.plan import Planner
from experiments.demo_policy.recipe import CAMERAS, CHUNK, CONTROL_HZ, CUBES, DISCS
from experiments.demo_policy.renders import Render
from experiments.federation.look import Looked, looked_at
from experiments.federation.recipe import Recipe
from experiments.federation.words import Words

GOALS: Final = 500
FASTEST_DEG_S: Final = 85.0  # as the scripted hand moves
STRETCH: Final = (1.0, 1.6)  # how much longer than that a motion may take
BEGUN: Final = 0.7  # the share of a motion that may lie behind; what is left of it is what is to be predicted
REPORT_STEPS: Final = 50
SAVE_STEPS: Final = 50

type Rows = NDArray[np.float32]


def motions(joints: Rows, goals: Rows, dice: np.random.Generator) -> Rows:
    """(n, CHUNK, 6): from each pose on, with least jerk, to one of the goals, which is then held."""
    ends = goals[dice.integers(0, len(goals), len(joints))]
    ways = ends - joints
    seconds = np.abs(ways).max(axis=1) * 1.875 / FASTEST_DEG_S * dice.uniform(*STRETCH, len(joints))
    seconds = np.maximum(seconds, 0.3)
    begun = dice.uniform(0, BEGUN, len(joints))
    moments = begun[:, None] + np.arange(1, CHUNK + 1) / CONTROL_HZ / seconds[:, None]
    done, now = _least_jerk(moments), _least_jerk(begun[:, None])
    shares = (done - now) / (1 - now)
    return (joints[:, None] + shares[..., None] * ways[:, None]).astype(np.float32)


def _least_jerk(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    t = np.clip(moments, 0, 1)
    return np.asarray(10 * t**3 - 15 * t**4 + 6 * t**5)


class Play:
    """Resumable. Only what a federated run trains learns here: the action expert and the projections around it."""

    def __init__(
        self, policy: SmolVLAPolicy, renders: Render, looked: Looked, words: Words, recipe: Recipe, file: Path
    ) -> None:
        self._policy, self._looked, self._words, self._recipe, self._file = policy, looked, words, recipe, file
        policy.requires_grad_(False)
        model = policy.model
        learning_parts = [
            model.vlm_with_expert.lm_expert,
            model.state_proj,
            model.action_in_proj,
            model.action_out_proj,
            model.action_time_mlp_in,
            model.action_time_mlp_out,
        ]
        self._parameters = [each for part in learning_parts for each in part.requires_grad_(True).parameters()]
        self._optimiser = torch.optim.AdamW(self._parameters, lr=recipe.play_rate, betas=(0.9, 0.95))
        dice = np.random.default_rng(recipe.seed)
        planner = Planner(SceneModel("so101", DISCS, CUBES))
        goals = np.array([planner.somewhere(dice) for _ in range(min(GOALS, len(renders.joints)))], np.float32)
        joints = renders.joints * 60
        chunks = motions(joints, goals, dice)
        mean, std = chunks.mean(axis=(0, 1)), chunks.std(axis=(0, 1))
        self.statistics = {
            key: {"mean": torch.from_numpy(mean), "std": torch.from_numpy(std)}
            for key in ("observation.state", "action")
        }
        self._states = torch.from_numpy((joints - mean) / std)
        self._chunks = torch.from_numpy((chunks - mean) / std)
        self.step = 0
        self.curve: list[dict[str, float]] = []
        if file.exists():
            about = checkpoint.restore(file, policy, self._optimiser)
            self.step, self.curve = about["step"], about["curve"]

    def run(self, progress: Callable[[dict[str, float]], None]) -> None:
        recipe = self._recipe
        losses: list[float] = []
        self._policy.train()
        while self.step < recipe.play_steps:
            loss = self._loss(learning.generator(recipe.seed + 2, self.step))
            rate = learning.rate(self.step, recipe.play_steps, recipe.play_rate)
            learning.descend(loss, self._optimiser, self._parameters, rate)
            losses.append(loss.item())
            self.step += 1
            last = self.step == recipe.play_steps
            if self.step % REPORT_STEPS == 0 or last:
                self.curve.append({"step": self.step, "loss": sum(losses) / len(losses)})
                losses.clear()
                progress(self.curve[-1])
            if self.step % SAVE_STEPS == 0 or last:
                about = {"step": self.step, "curve": self.curve}
                checkpoint.save(self._file, self._policy, self._optimiser, about)
        self._policy.eval()

    def _loss(self, dice: torch.Generator) -> torch.Tensor:
        batch, width = self._recipe.play_batch, self._policy.config.max_state_dim
        rows = torch.randint(0, len(self._states), (batch,), generator=dice)
        said = torch.randint(0, len(DISCS), (batch,), generator=dice)
        states, actions = (
            nn.functional.pad(each[rows], (0, width - each.shape[-1])) for each in (self._states, self._chunks)
        )
        noise = torch.randn(actions.shape, generator=dice)
        # lerobot's Beta(1.5, 1), by its inverse, so that the draw depends on the step alone.
        moment = torch.rand(batch, generator=dice) ** (1 / 1.5) * 0.999 + 0.001
        here = torch.ones(batch, dtype=torch.bool)
        with looked_at(self._policy):
            losses = self._policy.model.forward(
                [self._looked[camera][rows] for camera in CAMERAS],
                [here] * len(CAMERAS),
                self._words.tokens[said],
                self._words.masks[said],
                states,
                actions,
                noise,
                moment,
            )
        return losses[..., : self._states.shape[-1]].mean()
