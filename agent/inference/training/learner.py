"""A policy that learns: lerobot's loss, optimiser, schedule and step.

Random numbers are drawn anew for each step from the seed and the step's number, so that a training that was
interrupted goes on as if it had not been.
"""

import dataclasses
import math
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from lerobot.common.train_utils import load_training_state, save_training_state
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker
from safetensors.torch import load_file, save_file, save_model

from agent.errors import BadInput, Fatal
from agent.inference.checkpoint import WEIGHTS as POLICY_WEIGHTS
from agent.inference.loading import Loaded
from agent.inference.training.plan import Method, Plan
from agent.inference.training.saved import WEIGHTS

LORA_RANK: Final = 16  # lerobot's
LORA_RATE_FACTOR: Final = 10.0
"""lerobot's documentation of adapters: ten times the rate of a full training."""

VALIDATION_SEED: Final = 20_000_001
METERS: Final = ("loss", "grad_norm", "lr", "update_s", "gpu_mem_gb")


@dataclasses.dataclass(frozen=True)
class Lora:
    """The adapters of the method `lora`."""

    rank: int = LORA_RANK
    alpha: int | None = None  # None: left to peft, which takes 8; what an adapter adds is scaled by alpha / rank
    targets: str | None = None  # regular expression of module names; None: lerobot's own for the policy


class Learning(Protocol):
    """Rows to learn from and rows to judge by."""

    @property
    def episodes(self) -> int: ...

    def __len__(self) -> int: ...

    def batches(self, step: int) -> Iterator[dict[str, Any]]: ...

    def held_out(self) -> Iterator[dict[str, Any]]: ...


class Learner:
    """One step after the other. `step` is how many were taken, `seen` how many rows that were."""

    def __init__(
        self, loaded: Loaded, plan: Plan, rows: Learning, lora: Lora | None = None, scheduled: bool = True
    ) -> None:
        """Without `scheduled`, the rate is the same at each step."""
        self._loaded, self._plan, self._rows = loaded, plan, rows
        _seed(plan.seed, 0)
        self._policy = _trainable(loaded, plan.method, lora or Lora())
        self._optimizer, self._scheduler, self._clip = _optimizer(self._policy, loaded.policy.config, plan)
        if not scheduled:
            self._scheduler = None
        self._accelerator = Accelerator(cpu=loaded.device == "cpu", step_scheduler_with_optimizer=False)
        meters = {name: AverageMeter(name) for name in METERS}
        self._tracker = MetricsTracker(plan.batch, len(rows), rows.episodes, meters, accelerator=self._accelerator)
        self._batches: Iterator[dict[str, Any]] | None = None
        self.step = 0
        self.seen = 0

    @property
    def trained(self) -> int:
        """Parameters that change."""
        return sum(each.numel() for each in self._policy.parameters() if each.requires_grad)

    @property
    def parameters(self) -> int:
        return sum(each.numel() for each in self._policy.parameters())

    @property
    def checkpoint_bytes(self) -> int:
        """Weights and two moments each."""
        return 3 * sum(value.numel() * value.element_size() for value in self.changing().values())

    @property
    def rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def learn(self) -> float:
        """One step; its loss. Raises Fatal when that is no number: nothing that comes after it would be."""
        self._batches = self._batches or self._rows.batches(self.step)
        rows = next(self._batches)
        batch = self._loaded.preprocessor(rows)
        _seed(self._plan.seed, self.step)
        self._tracker, _ = update_policy(
            self._tracker,
            self._policy,
            batch,
            self._optimizer,
            self._clip,
            accelerator=self._accelerator,
            lr_scheduler=self._scheduler,
        )
        loss = float(self._tracker.metrics["loss"].val)
        if not math.isfinite(loss):
            raise Fatal(
                f"The loss is no number at step {self.step + 1}.",
                f"Begin anew under another --name, with a --rate below {self.rate:.1e}.",
            )
        self.step += 1
        self.seen += len(rows["index"])
        return loss

    def validate(self) -> float | None:
        """The mean loss on rows of the held-out episodes; None where none are."""
        total, count = 0.0, 0
        self._policy.eval()
        with torch.no_grad():
            for number, rows in enumerate(self._rows.held_out()):
                size = len(rows["index"])
                _seed(VALIDATION_SEED, number)
                loss, _ = self._policy.forward(self._loaded.preprocessor(rows))
                total, count = total + float(loss) * size, count + size
        return total / count if count else None

    def save(self, folder: Path) -> None:
        """Into an empty folder."""
        save_file({name: value.contiguous() for name, value in self.changing().items()}, folder / WEIGHTS)
        save_training_state(
            folder, self.step, self._optimizer, self._scheduler, num_processes=1, batch_size=self._plan.batch
        )

    def restore(self, folder: Path) -> None:
        """Raises Fatal when the checkpoint is not of this training."""
        weights = load_file(folder / WEIGHTS, device=self._loaded.device)
        if weights.keys() != self.changing().keys():
            raise Fatal(f"{folder} is not a checkpoint of this training.", "Begin the training anew.")
        self._policy.load_state_dict(weights, strict=False)
        self.step, self._optimizer, self._scheduler = load_training_state(folder, self._optimizer, self._scheduler)

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Other values of what training changes, by the names of `changing`. Raises BadInput when they do not fit."""
        mine = self.changing()
        wrong = [name for name in mine if name not in weights or weights[name].shape != mine[name].shape]
        if wrong or len(weights) != len(mine):
            raise BadInput(f"Weights do not fit what is trained: {', '.join(wrong[:3]) or 'there are too many'}.")
        with torch.no_grad():
            for name, value in mine.items():
                value.copy_(weights[name])

    def stay_near(self, strength: float) -> None:
        """Let every step be drawn back to the present weights, as by a loss of strength / 2 * |w - present|^2: the
        proximal term of FedProx (Li et al. 2018, arXiv:1812.06127). It is added after gradients were clipped."""
        weights = [each for each in self._policy.parameters() if each.requires_grad]
        present = [each.detach().clone() for each in weights]

        def draw_back(*_: object) -> None:
            for each, anchor in zip(weights, present, strict=True):
                if each.grad is not None:
                    each.grad.add_(each.detach() - anchor, alpha=strength)

        self._optimizer.register_step_pre_hook(draw_back)

    def export(self, folder: Path) -> None:
        """The whole policy, as lerobot saves one, with the processors that it had. It cannot learn on after this."""
        policy = self._policy
        if self._plan.method is Method.LORA:
            policy = policy.merge_and_unload()
        folder.mkdir()
        for path in sorted(self._loaded.bundle.policy.iterdir()):
            if path.name != POLICY_WEIGHTS:
                shutil.copyfile(path, folder / path.name)
        save_model(policy, str(folder / POLICY_WEIGHTS))

    def changing(self) -> dict[str, torch.Tensor]:
        """Parameters that are trained, and whatever else is part of the state, such as running means."""
        parameters = dict(self._policy.named_parameters())
        state = self._policy.state_dict()
        shared = {name for name, _ in self._policy.named_parameters(remove_duplicate=False)} - parameters.keys()
        frozen = {name for name, each in parameters.items() if not each.requires_grad}
        return {name: value for name, value in state.items() if name not in frozen | shared}


def _trainable(loaded: Loaded, method: Method, lora: Lora) -> Any:
    """The policy with gradients where the method wants them, by lerobot's own switches."""
    policy = loaded.policy
    policy.requires_grad_(True)
    if method is Method.LORA:
        policy.config.pretrained_path = loaded.bundle.policy  # lerobot gives adapters only to a policy that has one
        policy.config.load_vlm_weights = True  # they came with the checkpoint; lerobot warns of training from scratch
        try:
            return policy.wrap_with_peft(
                peft_cli_overrides={
                    "method_type": "LORA",
                    "r": lora.rank,
                    "lora_alpha": lora.alpha,
                    "target_modules": lora.targets,
                }
            )
        except ValueError as error:
            raise BadInput(
                f"lerobot has no adapters for {loaded.bundle.manifest.type}: {error}", "Give --method full."
            ) from error
    if loaded.bundle.manifest.type == "smolvla":
        frozen = method is Method.EXPERT
        inner = policy.model.vlm_with_expert
        inner.train_expert_only = inner.freeze_vision_encoder = frozen
        inner.set_requires_grad()
        policy.model.set_requires_grad()
    return policy


def _optimizer(policy: Any, config: Any, plan: Plan) -> tuple[Any, Any, float]:
    """Optimiser, schedule and the longest gradient, by the policy's presets."""
    preset, schedule = config.get_optimizer_preset(), config.get_scheduler_preset()
    rate = plan.rate
    if rate is None and plan.method is Method.LORA:
        rate = LORA_RATE_FACTOR * preset.lr
    if rate is not None:
        factor = rate / preset.lr
        preset = dataclasses.replace(preset, lr=rate)
        if hasattr(schedule, "peak_lr"):
            schedule = dataclasses.replace(schedule, peak_lr=rate, decay_lr=schedule.decay_lr * factor)
    parameters = policy.get_optim_params()
    if plan.rate is not None and isinstance(parameters, list):
        # Some policies name rates of their own for parts, e.g. ACT for its backbone.
        parameters = [{**group, "lr": group["lr"] * factor} if "lr" in group else group for group in parameters]
    optimizer = preset.build(parameters)
    return optimizer, schedule.build(optimizer, plan.steps) if schedule else None, preset.grad_clip_norm


def _seed(seed: int, number: int) -> None:
    """All random numbers of what comes next, from a seed and a number."""
    mixed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
