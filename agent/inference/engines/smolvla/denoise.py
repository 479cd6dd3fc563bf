"""Noise to actions: the flow that the action expert predicts, followed from time 1 (noise) to 0 (actions)."""

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.inference.engines.smolvla.attention import attend, feed_forward, heads, norm, split
from agent.inference.engines.smolvla.prefix import Memory
from agent.inference.engines.smolvla.rotary import Rotation, rotate, rotation
from agent.inference.engines.smolvla.weights import CrossLayer, Expert, Layer
from agent.inference.guidance import Pull


@dataclass(frozen=True)
class Schedule:
    """The flow's times and what the expert makes of each of them, computed once for all chunks."""

    times: tuple[float, ...]
    biases: Tensor  # (steps, x): the time's share of the layer that joins action and time
    action: Tensor  # (x, x): the action's share of its weights

    @classmethod
    def of(cls, policy: Any, weights: Expert, steps: int) -> Self:
        """For `steps` steps of equal length."""
        from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding

        times = tuple(1.0 + step * (-1.0 / steps) for step in range(steps))
        width = len(weights.time_in_bias)
        config = policy.config
        waves = create_sinusoidal_pos_embedding(
            torch.tensor(times), width, config.min_period, config.max_period, device=torch.device("cpu")
        ).to(weights.time_in)  # the type and the device of the weights
        action, time = weights.time_in.chunk(2, dim=1)
        return cls(times, F.linear(waves, time, weights.time_in_bias), action.contiguous())


@dataclass(frozen=True)
class Places:
    """Where the actions of a chunk stand, and whom they see: all of the prefix, and no later action."""

    after_prefix: Rotation
    alone: Rotation
    mask: Tensor  # (chunk_size, prefix + chunk_size)

    @classmethod
    def of(cls, prefix: int, size: int, head_dim: int, device: torch.device) -> Self:
        mask = torch.ones(size, prefix + size, dtype=torch.bool, device=device).tril(diagonal=prefix)
        return cls(rotation(prefix, size, head_dim, device), rotation(0, size, head_dim, device), mask)


def velocity(x: Tensor, bias: Tensor, action: Tensor, memory: Memory, places: Places, weights: Expert) -> Tensor:
    """One step of the expert: noisy actions (chunk_size, a) to where they flow, of the same shape.

    `bias` (x,) and `action` (x, x) are the schedule's for this step.
    """
    h = F.silu(F.linear(weights.action_in(x), action, bias))
    h = weights.time_out(h)
    for layer, kept in zip(weights.layers, memory.layers, strict=True):
        looked = norm(h, layer.norm_in, weights.epsilon)
        if isinstance(layer, Layer):
            h = h + layer.out(_among_all(looked, layer, kept, places, weights))
        else:
            h = h + layer.out(_at_prefix(looked, layer, kept, places, weights))
        h = h + feed_forward(h, layer, weights.epsilon)
    return weights.action_out(norm(h, weights.norm_out, weights.epsilon))


def denoise(noise: Tensor, memory: Memory, schedule: Schedule, weights: Expert, pull: Pull | None = None) -> Tensor:
    """Noise (chunk_size, a) to actions in the model's own space, (chunk_size, a)."""
    places = Places.of(memory.length, len(noise), weights.heads.width, noise.device)
    step = -1.0 / len(schedule.times)
    x = noise
    for time, bias in zip(schedule.times, schedule.biases, strict=True):
        flow = velocity(x, bias, schedule.action, memory, places, weights)
        if pull is not None:
            flow = pull.correct(flow, x, time)
        x = x + step * flow
    return x


def _among_all(x: Tensor, layer: Layer, kept: tuple[Tensor, Tensor], places: Places, weights: Expert) -> Tensor:
    query, key, value = split(layer.qkv(x), weights.heads, weights.attention)
    turned = rotate(query, places.after_prefix)
    keys = torch.cat([kept[0], rotate(key, places.after_prefix)], dim=1)
    return attend(turned, keys, torch.cat([kept[1], value], dim=1), places.mask)


def _at_prefix(x: Tensor, layer: CrossLayer, kept: tuple[Tensor, Tensor], places: Places, weights: Expert) -> Tensor:
    query = heads(layer.query(x), weights.heads.queries, weights.attention)
    return attend(rotate(query, places.alone), *kept)
