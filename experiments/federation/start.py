"""The policy that all begin with, as a bundle.

Its vision tower is the demo policy's. Its language model has learnt to find the disc that a sentence names, and its
action expert to move from where the joints are to anywhere; both from renders. It has seen no episode, and nothing has
told it that the named disc is where to go.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.inference.bundle import Bundle, open_bundle
from agent.inference.importer import Wish, import_checkpoint
from experiments.demo_policy import network, renders
from experiments.demo_policy.export import VLM, export
from experiments.demo_policy.recipe import CONTROL_HZ, DISCS, task_text
from experiments.federation.ground import Grounding
from experiments.federation.look import level, look
from experiments.federation.play import Play
from experiments.federation.recipe import Recipe
from experiments.federation.stations import VIEWS
from experiments.federation.words import Words

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
    drawn, words = renders.load(shards), Words.of(vlm)
    level(policy, drawn, recipe.network)
    looked = look(policy, drawn, recipe.network)
    Grounding(policy, drawn, looked, words, recipe, out / "grounded.safetensors").run(progress)
    play = Play(policy, drawn, looked, words, recipe, out / "played.safetensors")
    play.run(progress)
    checkpoint = export(out / "checkpoint", policy, vlm, play.statistics)
    wish = Wish(
        name=NAME,
        fps=CONTROL_HZ,
        cameras=VIEWS,
        vlm=checkpoint / VLM,
        description="Sees the virtual SO-101's table, knows what is meant and how an arm moves, but not where to.",
        tasks=tuple(task_text(disc) for disc in DISCS),
    )
    shutil.rmtree(folder, ignore_errors=True)
    return import_checkpoint(checkpoint, out / "policies", wish)
