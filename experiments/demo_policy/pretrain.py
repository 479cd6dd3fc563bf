"""The vision tower learns to say where things are, from renders. It is frozen while the policy learns."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy, resize_with_pad
from torch import nn

from experiments.demo_policy import checkpoint, learning
from experiments.demo_policy.network import tower
from experiments.demo_policy.recipe import Recipe
from experiments.demo_policy.renders import Render

HELD_OUT: Final = 0.04
REPORT_STEPS: Final = 250
VALIDATION_BATCH: Final = 250
BRIGHTNESS: Final = 0.08
RMS_FLOOR: Final = 1e-6
WEIGHTS: Final = {"patch": 0.2}  # a cross entropy, ten times the size of the others


class Heads(nn.Module):
    """Linear read-outs of the mean token. So simple on purpose: what they can read, a language layer can.

    `patch` asks every patch whether an object's middle lies in it. It is what gets learning under way: a patch can
    answer from its own pixels.
    """

    def __init__(self, vision_width: int, width: int, objects: int) -> None:
        super().__init__()
        self.front = nn.Linear(width, 2 * objects + 6)
        self.wrist = nn.Linear(width, 3 * objects)
        self.patch = nn.Linear(vision_width, objects)

    def forward(self, front: torch.Tensor, wrist: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (n, tokens, width) of both cameras to what they say."""
        return self.front(_read(front)), self.wrist(_read(wrist))


def _read(tokens: torch.Tensor) -> torch.Tensor:
    # As the language layers' norms see them.
    return (tokens / (tokens.pow(2).mean(-1, keepdim=True) + RMS_FLOOR).sqrt()).mean(1)


def pixels(images: torch.Tensor, image_px: int) -> torch.Tensor:
    """(n, height, width, 3) of 0 to 255 to what the tower takes, by lerobot's own resizing."""
    scaled = images.permute(0, 3, 1, 2).float() / 255
    return resize_with_pad(scaled, image_px, image_px, pad_value=0) * 2 - 1


class Pretraining:
    """Resumable: what is in the checkpoint is not done again."""

    def __init__(self, policy: SmolVLAPolicy, renders: Render, recipe: Recipe, file: Path) -> None:
        self._policy, self._recipe, self._file = policy, recipe, file
        objects = renders.places.shape[1]
        self._modules = nn.ModuleList(
            [*tower(policy), Heads(recipe.network.vision_width, recipe.network.width, objects)]
        )
        self._parameters = list(self._modules.parameters())
        self._optimiser = torch.optim.AdamW(self._parameters, lr=recipe.pretrain_rate, weight_decay=1e-4)
        self._data = {name: torch.from_numpy(value) for name, value in renders._asdict().items()}
        self._held = max(1, int(HELD_OUT * len(renders.joints)))
        self.step = 0
        self.curve: list[dict[str, float]] = []
        if file.exists():
            about = checkpoint.restore(file, self._modules, self._optimiser)
            self.step, self.curve = about["step"], about["curve"]

    def run(self, progress: Callable[[dict[str, float]], None]) -> None:
        recipe, saved = self._recipe, time.monotonic()
        count = len(self._data["joints"]) - self._held
        while self.step < recipe.pretrain_steps:
            dice = learning.generator(recipe.seed, self.step)
            chosen = torch.randint(0, count, (recipe.pretrain_batch // 2,), generator=dice)
            light = 1 + BRIGHTNESS * (2 * torch.rand((len(chosen), 1, 1, 1), generator=dice) - 1)
            losses = self._losses(chosen, light)
            loss = sum((WEIGHTS.get(name, 1.0) * value for name, value in losses.items()), torch.zeros(()))
            lr = learning.rate(self.step, recipe.pretrain_steps, recipe.pretrain_rate)
            learning.descend(loss, self._optimiser, self._parameters, lr)
            self.step += 1
            if self.step % REPORT_STEPS == 0 or self.step == recipe.pretrain_steps:
                self.curve.append({"step": self.step, "loss": loss.item(), **self.errors()})
                progress(self.curve[-1])
            if time.monotonic() - saved > recipe.save_every_s or self.step == recipe.pretrain_steps:
                self._save()
                saved = time.monotonic()

    def errors(self) -> dict[str, float]:
        """On renders that were held out: root of the mean square, in centimetres, and in pixels of 640."""
        with torch.no_grad():
            rows = torch.arange(len(self._data["joints"]) - self._held, len(self._data["joints"]))
            parts = [self._losses(part, torch.ones(())) for part in rows.split(VALIDATION_BATCH)]
        mean = {name: sum(float(part[name]) for part in parts) / len(parts) for name in parts[0]}
        return {
            "bearing_deg": mean["bearing"] ** 0.5 * 0.6 * 57.3,
            "distance_cm": mean["distance"] ** 0.5 * 5,
            "seen_px": mean["seen"] ** 0.5 * 320,
            "patch": mean["patch"],
            "joints_deg": mean["joints"] ** 0.5 * 60,
        }

    def _losses(self, rows: torch.Tensor, light: torch.Tensor) -> dict[str, torch.Tensor]:
        data, px = self._data, self._recipe.network.image_px
        images = torch.cat([data["front"][rows], data["wrist"][rows]]).float()
        lit = (images * (light.repeat(2, 1, 1, 1) if light.ndim else light)).clamp(0, 255)
        see, project, heads = self._modules
        patches = see(pixel_values=pixels(lit, px)).last_hidden_state
        front, wrist = heads(*project(patches).chunk(2))
        objects = data["places"].shape[1]
        off = (front[:, : 2 * objects].reshape(-1, objects, 2) - data["places"][rows]).pow(2)
        view, seen = wrist.reshape(-1, objects, 3), data["seen"][rows, 1]
        inside = seen[..., 2:]
        return {
            "bearing": off[..., 0].mean(),
            "distance": off[..., 1].mean(),
            "joints": (front[:, 2 * objects :] - data["joints"][rows]).pow(2).mean(),
            "seen": ((view[..., :2] - seen[..., :2]).pow(2) * inside).sum() / (2 * inside.sum()).clamp(min=1),
            "in_view": (view[..., 2] - seen[..., 2]).pow(2).mean(),
            "patch": self._patch_loss(heads.patch(patches), data["seen"][rows].transpose(0, 1).flatten(0, 1)),
        }

    def _patch_loss(self, said: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Cross entropy over patches; `said` (n, patches, objects), `seen` (n, objects, 3)."""
        network = self._recipe.network
        across = network.image_px // network.patch_px
        top = network.image_px // 4  # below the bar
        column = (seen[..., 0] + 1) / 2 * network.image_px
        row = top + (1 - seen[..., 1]) / 2 * (network.image_px - top)
        cell = [(axis / network.patch_px).long().clamp(0, across - 1) for axis in (row, column)]
        entropy = nn.functional.cross_entropy(said, cell[0] * across + cell[1], reduction="none")
        return (entropy * seen[..., 2]).sum() / seen[..., 2].sum().clamp(min=1)

    def _save(self) -> None:
        about: dict[str, Any] = {"step": self.step, "curve": self.curve}
        checkpoint.save(self._file, self._modules, self._optimiser, about)
