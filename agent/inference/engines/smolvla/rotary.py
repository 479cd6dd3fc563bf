"""Rotary position embedding as SmolVLA uses it: a fixed base of 10,000, whatever the language model's own is."""

from typing import Final

import torch
from torch import Tensor

BASE: Final = 10_000.0

type Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each of shape (length, head_dim / 2)."""


def rotation(first: int, length: int, head_dim: int, device: torch.device) -> Rotation:
    """The rotation of positions `first` to `first + length - 1`."""
    half = head_dim // 2
    period = BASE ** ((2.0 / head_dim) * torch.arange(half, dtype=torch.float32, device=device))
    places = torch.arange(first, first + length, dtype=torch.float32, device=device)
    angle = places[:, None] / period
    return torch.cos(angle), torch.sin(angle)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """`x` of shape (heads, length, head_dim), each pair of its halves turned. Keeps the type of `x`."""
    cos, sin = by
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)
