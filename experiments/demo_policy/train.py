"""The whole policy learns from the recorded episodes, on top of a vision tower that stays as it was pretrained.

lerobot freezes SmolVLA's vision encoder by default, too. What the tower says about a row is computed once.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import nn
from transformers import AutoTokenizer

from experiments.demo_policy import checkpoint, learning
from experiments.demo_policy.episodes import Episodes
from experiments.demo_policy.network import tower
from experiments.demo_policy.pretrain import pixels
from experiments.demo_policy.recipe import CAMERAS, Recipe

EMBED_BATCH: Final = 128
REPORT_STEPS: Final = 100
STATE_NOISE: Final = 0.1
"""At most, of a standard deviation. A closed loop brings states that no episode holds; what was right there is still
right a few degrees beside it. Without, a fingertip that comes down a centimetre off its disc takes it for a disc that
it has to leave, and lifts."""

NORMAL_FLOOR: Final = 1e-8  # as lerobot's normaliser
LEVEL_ROWS: Final = 100
AVERAGE_OVER: Final = 0.995  # the policy that is kept is a running mean of the weights
SEEN_NOISE: Final = 0.02  # of the size of an image token


class Training:
    """Resumable, like pretraining. `average` is the policy to use."""

    def __init__(self, policy: SmolVLAPolicy, episodes: Episodes, vlm: Path, recipe: Recipe, file: Path) -> None:
        self._policy, self._recipe, self._file = policy, recipe, file
        for part in tower(policy):
            part.requires_grad_(False)
        statistics = episodes.statistics()
        self._states = _normal(torch.from_numpy(episodes.states), statistics["observation.state"])
        self._chunks = _normal(torch.from_numpy(episodes.chunks()), statistics["action"])
        tokens = AutoTokenizer.from_pretrained(vlm)([f"{text}\n" for text in episodes.texts], padding=True)
        self._tokens = torch.tensor(tokens["input_ids"])
        self._masks = torch.tensor(tokens["attention_mask"]).bool()
        self._tasks = torch.from_numpy(episodes.tasks)
        self._episodes = episodes
        self._seen: dict[str, torch.Tensor] = {}
        self._parameters = [each for each in policy.parameters() if each.requires_grad]
        self._optimiser = torch.optim.AdamW(
            self._parameters, lr=recipe.train_rate, weight_decay=1e-4, betas=(0.9, 0.95)
        )
        self.average = copy.deepcopy(policy)
        self._both = nn.ModuleList([policy, self.average])
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self.successes: list[dict[str, float]] = []
        if not file.exists():
            self._level()
        else:
            about = checkpoint.restore(file, self._both, self._optimiser)
            self.step, self.curve, self.successes = about["step"], about["curve"], about["successes"]

    def run(
        self,
        progress: Callable[[dict[str, float]], None],
        evaluate: Callable[[SmolVLAPolicy], dict[str, float]],
    ) -> None:
        """To the last step. `evaluate` gives success on unseen starts."""
        recipe, saved = self._recipe, time.monotonic()
        if self.step < recipe.train_steps:
            self._see()
        self._policy.train()
        while self.step < recipe.train_steps:
            loss = self._loss(learning.generator(recipe.seed + 1, self.step))
            lr = learning.rate(self.step, recipe.train_steps, recipe.train_rate)
            learning.descend(loss, self._optimiser, self._parameters, lr)
            self._follow()
            self.step += 1
            last = self.step == recipe.train_steps
            if self.step % REPORT_STEPS == 0 or last:
                self.curve.append({"step": self.step, "loss": loss.item()})
                progress(self.curve[-1])
            if self.step % recipe.evaluate_every == 0 or last:
                self.successes.append({"step": self.step, **evaluate(self.average)})
                progress(self.successes[-1])
                self._save()
                saved = time.monotonic()
            elif time.monotonic() - saved > recipe.save_every_s:
                self._save()
                saved = time.monotonic()

    def _loss(self, dice: torch.Generator) -> torch.Tensor:
        rows = torch.randint(0, len(self._states), (self._recipe.train_batch,), generator=dice)
        states, actions, tasks = self._states[rows], self._chunks[rows], self._tasks[rows]
        off = STATE_NOISE * torch.rand((len(rows), 1), generator=dice)
        states = states + off * torch.randn(states.shape, generator=dice)
        model, width = self._policy.model, self._policy.config.max_state_dim
        actions = nn.functional.pad(actions, (0, width - actions.shape[-1]))
        noise = torch.randn(actions.shape, generator=dice)
        # lerobot's Beta(1.5, 1), by its inverse, so that the draw depends on the step alone.
        moment = torch.rand(len(rows), generator=dice) ** (1 / 1.5) * 0.999 + 0.001
        here = torch.ones(len(rows), dtype=torch.bool)
        backbone: Any = model.vlm_with_expert
        backbone.embed_image = _as_it_is
        try:
            losses = model.forward(
                [self._blurred(camera, rows, dice) for camera in CAMERAS],
                [here] * len(CAMERAS),
                self._tokens[tasks],
                self._masks[tasks],
                nn.functional.pad(states, (0, width - states.shape[-1])),
                actions,
                noise,
                moment,
            )
        finally:
            del backbone.embed_image
        return losses[..., : self._states.shape[-1]].mean()

    def _level(self) -> None:
        """Give image tokens the size of the other tokens. What the tower says is in their direction.

        lerobot multiplies them by the root of the width. Tokens that are much larger than what a layer adds to them
        hardly change on their way through the layers.
        """
        sample = slice(None, None, max(1, len(self._states) // LEVEL_ROWS))
        px, model = self._recipe.network.image_px, self._policy.model.vlm_with_expert
        with torch.no_grad():
            images = torch.cat([torch.from_numpy(getattr(self._episodes, camera)[sample]) for camera in CAMERAS])
            size = model.embed_image(pixels(images, px)).pow(2).mean().sqrt() * self._recipe.network.width**0.5
            for policy in (self._policy, self.average):
                tower(policy)[1].modality_projection.proj.weight /= size

    def _see(self) -> None:
        """What the tower says about every row: (rows, tokens, width)."""
        px = self._recipe.network.image_px
        for camera in CAMERAS:
            images: torch.Tensor = torch.from_numpy(getattr(self._episodes, camera))
            with torch.no_grad():
                parts = [
                    self._policy.model.vlm_with_expert.embed_image(pixels(some, px))
                    for some in images.split(EMBED_BATCH)
                ]
            self._seen[camera] = torch.cat(parts)

    def _blurred(self, camera: str, rows: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
        tokens = self._seen[camera][rows]
        size = SEEN_NOISE * self._recipe.network.width**-0.5
        return tokens + size * torch.randn(tokens.shape, generator=dice)

    def _follow(self) -> None:
        share = min(AVERAGE_OVER, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            ours, theirs = list(self.average.parameters()), list(self._policy.parameters())
            torch._foreach_lerp_(ours, theirs, 1 - share)  # type: ignore[arg-type]

    def _save(self) -> None:
        about: dict[str, Any] = {"step": self.step, "curve": self.curve, "successes": self.successes}
        checkpoint.save(self._file, self._both, self._optimiser, about)


def _as_it_is(tokens: torch.Tensor) -> torch.Tensor:
    return tokens


def _normal(rows: torch.Tensor, statistics: dict[str, torch.Tensor]) -> torch.Tensor:
    return (rows - statistics["mean"]) / (statistics["std"] + NORMAL_FLOOR)
