"""The language model learns to find what a sentence names, from renders.

Which of a render's discs is asked for is drawn. The answer is read where the action expert will look for it, in the
values of the sentence's own tokens in every layer but the first (which has not yet mixed pictures and words), by linear
layers that are thrown away afterwards.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy, make_att_2d_masks
from torch import nn

from experiments.demo_policy import checkpoint, learning
from experiments.demo_policy.recipe import CAMERAS, DISCS
from experiments.demo_policy.renders import Render
from experiments.federation.look import Looked, looked_at
from experiments.federation.recipe import Recipe
from experiments.federation.words import Words

HELD_OUT: Final = 0.04
REPORT_STEPS: Final = 50
SAVE_STEPS: Final = 50
ANSWERS: Final = 5  # bearing and distance from the base; across, up and whether it is there in the wrist's picture


class Grounding:
    """Resumable. Vision tower and action expert stay as they are."""

    def __init__(
        self, policy: SmolVLAPolicy, renders: Render, looked: Looked, words: Words, recipe: Recipe, file: Path
    ) -> None:
        self._policy, self._looked, self._words, self._recipe, self._file = policy, looked, words, recipe, file
        policy.requires_grad_(False)
        self._backbone: Any = policy.model.vlm_with_expert
        language = self._backbone.get_vlm_model().text_model.requires_grad_(True)
        self._values = [layer.self_attn.v_proj for layer in language.layers[1:]]
        torch.manual_seed(recipe.seed)
        self._heads = nn.ModuleList(nn.Linear(each.out_features, ANSWERS) for each in self._values)
        self._modules = nn.ModuleList([policy, self._heads])
        self._parameters = [*language.parameters(), *self._heads.parameters()]
        self._optimiser = torch.optim.AdamW(self._parameters, lr=recipe.ground_rate, betas=(0.9, 0.95))
        self._places, self._seen = torch.from_numpy(renders.places), torch.from_numpy(renders.seen[:, 1])
        self._held = max(1, int(HELD_OUT * len(renders.joints)))
        self.step = 0
        self.curve: list[dict[str, float]] = []
        if file.exists():
            about = checkpoint.restore(file, self._modules, self._optimiser)
            self.step, self.curve = about["step"], about["curve"]

    def run(self, progress: Callable[[dict[str, float]], None]) -> None:
        """To the last step. Progress is what is still wrong on renders that were held out."""
        recipe = self._recipe
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
                about = {"step": self.step, "curve": self.curve}
                checkpoint.save(self._file, self._modules, self._optimiser, about)

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
        """Means over the layers."""
        read = self._read(rows, asked)
        layers = [self._wrong(head(each), rows, asked) for head, each in zip(self._heads, read, strict=True)]
        return {name: torch.stack([layer[name] for layer in layers]).mean() for name in layers[0]}

    def _wrong(self, said: torch.Tensor, rows: torch.Tensor, asked: torch.Tensor) -> dict[str, torch.Tensor]:
        place, seen = self._places[rows, asked], self._seen[rows, asked]
        inside = seen[:, 2:]
        return {
            "bearing": (said[:, 0] - place[:, 0]).pow(2).mean(),
            "distance": (said[:, 1] - place[:, 1]).pow(2).mean(),
            "seen": ((said[:, 2:4] - seen[:, :2]).pow(2) * inside).sum() / (2 * inside.sum()).clamp(min=1),
            "in_view": (said[:, 4] - seen[:, 2]).pow(2).mean(),
        }

    def _read(self, rows: torch.Tensor, asked: torch.Tensor) -> list[torch.Tensor]:
        """The sentence's values in each layer but the first, (n, values), beside the pictures of some renders."""
        here = torch.ones(len(rows), dtype=torch.bool)
        state = torch.zeros(len(rows), self._policy.config.max_state_dim)
        tokens, masks = self._words.tokens[asked], self._words.masks[asked]
        with looked_at(self._policy):
            prefix, there, apart = self._policy.model.embed_prefix(
                [self._looked[camera][rows] for camera in CAMERAS],
                [here] * len(CAMERAS),
                tokens,
                masks,
                state=state,
            )
        # The last token is the state's, which the others do not see. With a cache, every layer attends to all tokens,
        # as it does when the policy predicts.
        prefix, there, apart = prefix[:, :-1], there[:, :-1], apart[:, :-1]
        values: list[torch.Tensor] = []
        hooks = [each.register_forward_hook(lambda _, __, out: values.append(out)) for each in self._values]
        try:
            self._backbone.forward(
                attention_mask=make_att_2d_masks(there, apart),
                position_ids=torch.cumsum(there, dim=1) - 1,
                past_key_values=None,
                inputs_embeds=[prefix, None],
                use_cache=True,
            )
        finally:
            for hook in hooks:
                hook.remove()
        weights = masks.float()[..., None]
        return [(each[:, -tokens.shape[1] :] * weights).sum(1) / weights.sum(1) for each in values]
