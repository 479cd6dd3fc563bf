"""The stages in their order. Each takes up where it was left, and does nothing when it is done."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from rich.console import Console

from experiments.demo_policy import episodes, network, plots, renders
from experiments.demo_policy.evaluate import Control, Evaluation
from experiments.demo_policy.export import export, fingerprint, load, processors
from experiments.demo_policy.pretrain import Pretraining
from experiments.demo_policy.recipe import Recipe
from experiments.demo_policy.record import record
from experiments.demo_policy.simulator import Simulator
from experiments.demo_policy.train import Training

NORMAL_95: Final = 1.96


class Stages:
    """Everything below one folder."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder.absolute(), recipe
        self._console = Console(highlight=False)
        self._began = time.monotonic()
        self._vlm = self.folder / "vlm"
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(recipe.threads)

    def record(self) -> None:
        """Teleoperated episodes, in real time."""
        dataset = record(self.folder, self.recipe, lambda done, outcome: self._say("record", done, outcome))
        self._say("record", f"{self.recipe.episodes} episodes in {dataset}")

    def pretrain(self) -> None:
        """Renders, then the vision tower."""
        paths = renders.draw(self.folder / "renders", self.recipe, lambda *done: self._say("renders", *done))
        pretraining = Pretraining(self._policy(), renders.load(paths), self.recipe, self._pretrained)
        pretraining.run(lambda errors: self._say("pretrain", errors))
        plots.plot_pretraining(self.folder / "pretraining.png", pretraining.curve)

    def train(self) -> None:
        """The policy, with a look at its success now and then, and its checkpoint."""
        training, rows = self._training()
        with Simulator(self.recipe.network.image_px) as simulator:
            evaluation = Evaluation(simulator, processors(training.average, self._vlm, rows.statistics()))

            def evaluate(policy: SmolVLAPolicy) -> dict[str, float]:
                # Between recorded and final starts: the curve must not be what decides the final figure.
                first = self.recipe.final_starts + 1000
                return evaluation.run(policy, self.recipe.evaluate_starts, first=first)

            training.run(lambda point: self._train_progress(training, point), evaluate)
        export(self.folder / "policy", training.average, self._vlm, rows.statistics())
        self._say("train", f"checkpoint in {self.folder / 'policy'}")

    def evaluate(self) -> None:
        """The table: as trained and with something taken away, each on the same unseen starts, from the checkpoint."""
        policy, parts = load(self.folder / "policy")
        file = self.folder / "evaluation.json"
        results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        weights = fingerprint(self.folder / "policy")
        if results.get("weights") != weights:
            results = {"weights": weights}
        with Simulator(self.recipe.network.image_px) as simulator:
            for control in Control:
                if control.value not in results:
                    evaluation = Evaluation(simulator, parts)  # anew: a start may depend on the one before
                    results[control.value] = evaluation.run(policy, self.recipe.final_starts, control)
                    file.write_text(json.dumps(results, indent=2) + "\n")
                self._say("evaluate", control.value, _with_interval(results[control.value]))

    def all(self) -> None:
        for stage in (self.record, self.pretrain, self.train, self.evaluate):
            stage()

    @property
    def _pretrained(self) -> Path:
        return self.folder / "pretrained.safetensors"

    def _policy(self) -> SmolVLAPolicy:
        if not (self._vlm / "config.json").exists():
            network.write_vlm(self._vlm, self.recipe.network)
        return network.build(self._vlm, self.recipe.network, self.recipe.seed)

    def _training(self) -> tuple[Training, episodes.Episodes]:
        dataset = self.folder / "station" / "datasets" / "reach"
        px = self.recipe.network.image_px
        rows = episodes.load(dataset, px, self.folder / "cache", lambda *done: self._say("decode", *done))
        policy = self._policy()
        network.load_tower(policy, self._pretrained)
        file = self.folder / "trained.safetensors"
        return Training(policy, rows, self._vlm, self.recipe, file), rows

    def _train_progress(self, training: Training, point: dict[str, float]) -> None:
        self._say("train", point)
        if "success" in point:
            plots.plot_training(self.folder / "training.png", training.curve, training.successes)

    def _say(self, stage: str, *what: Any) -> None:
        words = [
            ", ".join(f"{key} {value:.4g}" for key, value in each.items()) if isinstance(each, Mapping) else str(each)
            for each in what
        ]
        self._console.print(f"[dim]{time.monotonic() - self._began:7.0f} s[/]  {stage:9}", "  ".join(words))


def _with_interval(result: dict[str, float]) -> dict[str, Any]:
    """With Wilson's 95 % interval of the success, in percent."""
    share, count, z = result["success"], result["starts"], NORMAL_95
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return {**result, "low": middle - half, "high": middle + half}
