"""What pretraining and training share: the schedule, and draws that depend on seed and step alone."""

import math
from typing import Final

import torch

WARM_UP: Final = 0.04  # of all steps
LAST_RATE: Final = 0.02  # of the peak
CLIP_NORM: Final = 1.0


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine."""
    warm = max(1, int(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    return peak * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * share)) / 2)


def generator(seed: int, step: int) -> torch.Generator:
    """Randomness of one step: a run that was killed and goes on draws what it would have drawn."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def descend(
    loss: torch.Tensor, optimiser: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], lr: float
) -> None:
    """One optimiser step with clipped gradients."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
    optimiser.step()
