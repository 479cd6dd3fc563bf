"""Real-time chunking: a new chunk is drawn towards the actions that will run before it arrives.

While a chunk is being computed the arm goes on with the previous one. Those actions cannot be changed any more, so
the new chunk is denoised under the condition that it begins with them (Black, Galliker and Levine 2025,
arXiv:2506.07339). lerobot differentiates through an identity to get the correction; the derivative being 1, it is

    v' = v - g(t) * w * (target - (x - t * v))

which is bit-equal to lerobot's `RTCProcessor` and needs no autograd.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
import torch
from torch import Tensor

from agent.inference.engine import Actions, Guidance
from agent.messages import JOINTS

type Schedule = Literal["linear", "exp", "ones", "zeros"]
"""How the weights fall from 1 to 0 between the delay and the horizon; lerobot's names."""

SCHEDULE: Final[Schedule] = "linear"  # lerobot's default

MAX_WEIGHT: Final = 10.0
"""Bound of g(t), which is infinite at the first step. lerobot's default; its authors advise one a flow step."""


def prefix_weights(delay: int, horizon: int, size: int, schedule: Schedule = SCHEDULE) -> Tensor:
    """How much each of `size` actions is drawn, shape (size,): 1 below `delay`, falling, 0 from `horizon` on."""
    delay = min(delay, horizon, size)
    weights = torch.zeros(size)
    weights[:delay] = 1.0
    between = min(horizon, size) - delay
    if between <= 0 or schedule == "zeros":
        return weights
    fall = torch.linspace(1, 0, between + 2)[1:-1]
    match schedule:
        case "ones":
            fall = torch.ones(between)
        case "exp":
            fall = fall * torch.expm1(fall).div(math.e - 1)
    weights[delay : delay + between] = fall
    return weights


def strength(time: float, maximum: float = MAX_WEIGHT) -> float:
    """g(t) at flow time `time`, which runs from 1 (noise) down to 0 (actions). Rounded as lerobot does, to float32."""
    done = torch.as_tensor(1 - time)
    left = (1 - done) ** 2
    spread = (left + done**2) / left
    ratio = torch.nan_to_num((1 - done) / done, posinf=maximum)
    return min(torch.nan_to_num(ratio * spread, posinf=maximum).item(), maximum)


@dataclass(frozen=True)
class Pull:
    """Guidance in the model's own space. `target` has shape (chunk_size, width), `weights` (chunk_size, 1)."""

    target: Tensor
    weights: Tensor

    @classmethod
    def towards(cls, target: Tensor, delay: int, horizon: int, size: int, schedule: Schedule = SCHEDULE) -> Self:
        """Guidance by `target`, shape (n, width), for a chunk of `size` actions.

        Where n < size there is nothing to be drawn to: the weight is 0 there, whatever `horizon` says.
        """
        padded = torch.zeros(size, target.shape[-1])
        known = min(len(target), size)
        padded[:known] = target[:known]
        return cls(padded, prefix_weights(delay, min(horizon, known), size, schedule)[:, None])

    def correct(self, velocity: Tensor, x: Tensor, time: float) -> Tensor:
        """The guided velocity of `x`, both of shape (chunk_size, width), at flow time `time`."""
        error = (self.target - (x - time * velocity)) * self.weights
        return velocity - strength(time) * error


@dataclass(frozen=True)
class ModelSpace:
    """Where a policy's actions have mean 0 and spread 1, seen from degrees. All of lerobot's normalisations are
    affine joint by joint, so two points of the policy's own un-normaliser tell all about them."""

    offset: Actions  # (6,)
    scale: Actions  # (6,)

    @classmethod
    def of(cls, finish: Callable[[Tensor], Actions], size: int) -> Self:
        """`finish` takes chunks of the model, (1, size, 6), to degrees, (size, 6)."""
        zero, one = (finish(torch.full((1, size, len(JOINTS)), value))[0] for value in (0.0, 1.0))
        return cls(zero, one - zero)

    def enter(self, actions: Actions) -> Tensor:
        """Degrees (n, 6) to the model's space. A joint that never moved in training stands at 0."""
        moves = self.scale != 0
        inside = np.where(moves, (actions - self.offset) / np.where(moves, self.scale, 1), 0)
        return torch.from_numpy(inside.astype(np.float32))

    def pull(self, guidance: Guidance, size: int, width: int) -> Pull:
        """Guidance for a model with chunks of shape (size, width). Training filled the columns beyond the joints
        with 0, so that is what they are drawn to."""
        inside = self.enter(guidance.actions)
        padded = torch.nn.functional.pad(inside, (0, width - inside.shape[-1]))
        return Pull.towards(padded, guidance.delay, guidance.horizon, size)
