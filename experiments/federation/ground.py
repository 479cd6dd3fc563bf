"""The language model learns to find what a sentence names, from renders: the policy that stations start from sees and
reads, as SmolVLM does, and has never moved an arm. Its action expert has random weights.

Renders carry no actions. Which of a render's discs is asked for is drawn; the answer is read from the sentence's own
tokens, by a linear layer that is thrown away afterwards.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy, make_att_2d_masks
from torch import nn
from transformers import AutoTokenizer

from experiments.demo_policy import checkpoint, learning
from experiments.demo_policy.network import tower
from experiments.demo_policy.pretrain import pixels
from experiments.demo_policy.recipe import CAMERAS, DISCS, task_text
from experiments.demo_policy.renders import Render
from experiments.federation.recipe import Recipe

EMBED_BATCH: Final = 128
HELD_OUT: Final = 0.04
LEVEL_RENDERS: Final = 100
REPORT_STEPS: Final = 50
SAVE_STEPS: Final = 50
ANSWERS: Final = 5  # bearing and distance from the base; across, up and whether it is there in the wrist's picture


class Grounding:
    """Resumable. Vision tower and action expert stay as they are."""

    def __init__(self, policy: SmolVLAPolicy, renders: Render, vlm: Path, recipe: Recipe, file: Path) -> None:
        self._policy, self._recipe, self._file = policy, recipe, file
        policy.requires_grad_(False)
        self._backbone: Any = policy.model.vlm_with_expert
        self._heads = nn.Linear(recipe.network.width, ANSWERS)
        language = self._backbone.get_vlm_model().text_model.requires_grad_(True)
        self._modules = nn.ModuleList([policy, self._heads])
        self._parameters = [*language.parameters(), *self._heads.parameters()]
        self._optimiser = torch.optim.AdamW(self._parameters, lr=recipe.ground_rate, betas=(0.9, 0.95))
        self._renders = renders
        self._places, self._seen = torch.from_numpy(renders.places), torch.from_numpy(renders.seen[:, 1])
        self._held = max(1, int(HELD_OUT * len(renders.joints)))
        tokens = AutoTokenizer.from_pretrained(vlm)([f"{task_text(f'{disc} disc')}\n" for disc in DISCS], padding=True)
        self._tokens = torch.tensor(tokens["input_ids"])
        self._masks = torch.tensor(tokens["attention_mask"]).bool()
        self._looked: dict[str, torch.Tensor] = {}
        self.step = 0
        self.curve: list[dict[str, float]] = []
        if file.exists():
            about = checkpoint.restore(file, self._modules, self._optimiser)
            self.step, self.curve = about["step"], about["curve"]
        else:
            self._level()

    def run(self, progress: Callable[[dict[str, float]], None]) -> None:
        """To the last step. Progress is what is still wrong on renders that were held out."""
        recipe = self._recipe
        if self.step < recipe.ground_steps:
            self._look()
        count = len(self._places) - self._held
        while self.step < recipe.ground_steps:
            dice = learning.generator(recipe.seed, self.step)
            rows = torch.randint(0, count, (recipe.ground_batch,), generator=dice)
            asked = torch.randint(0, len(DISCS), (recipe.ground_batch,), generator=dice)
            loss = sum(self._losses(rows, asked).values(), torch.zeros(()))
            rate = learning.rate(self.step, recipe.ground_steps, recipe.ground_rate)
            learning.descend(loss, self._optimiser, self._parameters, rate)
            self.step += 1
            last = self.step == recipe.ground_steps
            if self.step % REPORT_STEPS == 0 or last:
                self.curve.append({"step": self.step, "loss": loss.item(), **self.errors()})
                progress(self.curve[-1])
            if self.step % SAVE_STEPS == 0 or last:
                checkpoint.save(self._file, self._modules, self._optimiser, {"step": self.step, "curve": self.curve})

    def errors(self) -> dict[str, float]:
        """Of the named disc, on held-out renders: root of the mean square."""
        rows = torch.arange(len(self._places) - self._held, len(self._places))
        with torch.no_grad():
            mean = self._losses(rows, rows % len(DISCS))
        return {
            "bearing_deg": float(mean["bearing"]) ** 0.5 * 0.6 * 57.3,
            "distance_cm": float(mean["distance"]) ** 0.5 * 5,
            "seen_px": float(mean["seen"]) ** 0.5 * 320,
        }

    def _losses(self, rows: torch.Tensor, asked: torch.Tensor) -> dict[str, torch.Tensor]:
        said = self._heads(self._read(rows, asked))
        place, seen = self._places[rows, asked], self._seen[rows, asked]
        inside = seen[:, 2:]
        return {
            "bearing": (said[:, 0] - place[:, 0]).pow(2).mean(),
            "distance": (said[:, 1] - place[:, 1]).pow(2).mean(),
            "seen": ((said[:, 2:4] - seen[:, :2]).pow(2) * inside).sum() / (2 * inside.sum()).clamp(min=1),
            "in_view": (said[:, 4] - seen[:, 2]).pow(2).mean(),
        }

    def _read(self, rows: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """What the language model makes of the sentence, (n, width), in front of the pictures of some renders."""
        config, backbone = self._policy.config, self._backbone
        here = torch.ones(len(rows), dtype=torch.bool)
        state = torch.zeros(len(rows), config.max_state_dim)
        backbone.embed_image = _as_it_is
        try:
            tokens, there, apart = self._policy.model.embed_prefix(
                [self._looked[camera][rows] for camera in CAMERAS],
                [here] * len(CAMERAS),
                self._tokens[asked],
                self._masks[asked],
                state=state,
            )
        finally:
            del backbone.embed_image
        # The last token is the state's, which the others do not see. With a cache, every layer attends to all tokens,
        # as it does when the policy predicts.
        tokens, there, apart = tokens[:, :-1], there[:, :-1], apart[:, :-1]
        (read, _), _ = backbone.forward(
            attention_mask=make_att_2d_masks(there, apart),
            position_ids=torch.cumsum(there, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[tokens, None],
            use_cache=True,
        )
        weights = self._masks[asked].float()[..., None]
        return (read[:, -self._tokens.shape[1] :] * weights).sum(1) / weights.sum(1)

    def _level(self) -> None:
        """Give image tokens the size of the other tokens; see experiments/demo_policy/train.py."""
        sample = slice(None, None, max(1, len(self._places) // LEVEL_RENDERS))
        network = self._recipe.network
        with torch.no_grad():
            images = torch.cat([torch.from_numpy(getattr(self._renders, camera)[sample]) for camera in CAMERAS])
            size = self._backbone.embed_image(pixels(images, network.image_px)).pow(2).mean().sqrt()
            tower(self._policy)[1].modality_projection.proj.weight /= size * network.width**0.5

    def _look(self) -> None:
        """What the tower says about every render: (renders, tokens, width)."""
        px = self._recipe.network.image_px
        for camera in CAMERAS:
            images: torch.Tensor = torch.from_numpy(getattr(self._renders, camera))
            with torch.no_grad():
                parts = [self._backbone.embed_image(pixels(some, px)) for some in images.split(EMBED_BATCH)]
            self._looked[camera] = torch.cat(parts)


def _as_it_is(tokens: torch.Tensor) -> torch.Tensor:
    return tokens
