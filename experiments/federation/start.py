"""The policy that all begin with, as a bundle: eyes and language were pretrained, the action expert was not."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from agent.inference.bundle import Bundle, open_bundle
from agent.inference.importer import Wish, import_checkpoint
from agent.virtual.arm_model import RANGE_DEG
from experiments.demo_policy import network, renders
from experiments.demo_policy.export import VLM, export
from experiments.demo_policy.recipe import CONTROL_HZ, DISCS, task_text
from experiments.demo_policy.recipe import Recipe as DemoRecipe
from experiments.federation.ground import Grounding
from experiments.federation.recipe import Recipe
from experiments.federation.stations import VIEWS

NAME: Final = "start"


def start(
    demo: Path, out: Path, recipe: Recipe, shards: list[Path], progress: Callable[[dict[str, float]], None]
) -> Bundle:
    """Below `out/policies`, made if it is not there. `demo` holds what the vision tower has learnt."""
    folder = out / "policies" / NAME
    if folder.exists():
        return open_bundle(folder)
    vlm = out / VLM
    if not (vlm / "config.json").exists():
        network.write_vlm(vlm, recipe.network)
    policy = network.build(vlm, recipe.network, recipe.seed)
    network.load_tower(policy, demo / "pretrained.safetensors")
    Grounding(policy, renders.load(shards), vlm, recipe, out / "grounded.safetensors").run(progress)
    checkpoint = export(out / "checkpoint", policy, vlm, _of_the_arm())
    wish = Wish(
        name=NAME,
        fps=CONTROL_HZ,
        cameras=VIEWS,
        vlm=checkpoint / VLM,
        description="Sees the virtual SO-101's table and reads which disc is meant; has never moved an arm.",
        tasks=tuple(task_text(disc) for disc in DISCS),
    )
    shutil.rmtree(folder, ignore_errors=True)
    return import_checkpoint(checkpoint, out / "policies", wish)


def drawn(demo: Path, recipe: DemoRecipe, progress: Callable[[int, int], None]) -> list[Path]:
    """The renders of the demo policy's pretraining."""
    return renders.draw(demo / "renders", recipe, progress)


def _of_the_arm() -> dict[str, dict[str, torch.Tensor]]:
    """Before anybody has data, joints are scaled by their range. A run replaces this with what its stations tell."""
    low, high = torch.tensor(RANGE_DEG, dtype=torch.float32).T.clone()
    low[-1], high[-1] = 0.0, 100.0  # the gripper is in percent
    values = {"mean": (low + high) / 2, "std": (high - low) / 4, "min": low, "max": high}
    return {"observation.state": values, "action": dict(values)}
