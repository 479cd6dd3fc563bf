"""Every number of the demo policy: what is recorded, how big the network is, how long it learns."""

from dataclasses import dataclass, replace
from typing import Final

CAMERAS: Final = ("front", "wrist")
DISCS: Final = ("red", "blue")
CUBES: Final = ("green",)
CHUNK: Final = 50
CONTROL_HZ: Final = 30
NEAR_M: Final = 0.02
"""A fingertip this near to the middle of a disc touches it. A demonstrated touch ends 8 mm above it."""


def task_text(disc: str) -> str:
    """The sentence that names a disc, e.g. `blue disc`."""
    return f"touch the {disc}"


@dataclass(frozen=True)
class Network:
    """Sizes of a SmolVLA; the layout is lerobot's own."""

    image_px: int = 96  # 640x480 becomes 96x72 under a black bar
    patch_px: int = 16
    scale: int = 2  # pixel shuffle: 6x6 patches become 9 tokens a camera
    vision_width: int = 96
    vision_inner: int = 192
    vision_layers: int = 3
    vision_heads: int = 4
    width: int = 128
    inner: int = 256
    layers: int = 4
    heads: int = 4
    key_heads: int = 2
    head_width: int = 32
    expert_share: float = 0.75
    state_width: int = 8  # joints are padded to this
    flow_steps: int = 5


@dataclass(frozen=True)
class Recipe:
    """Amounts of everything. Counts of steps are optimiser steps."""

    seed: int = 0
    network: Network = Network()
    episodes: int = 530
    renders: int = 24_000
    pretrain_steps: int = 10_000
    pretrain_batch: int = 64
    pretrain_rate: float = 1.5e-3
    train_steps: int = 4_000
    train_batch: int = 32
    train_rate: float = 1.5e-3
    evaluate_every: int = 500
    evaluate_starts: int = 20
    final_starts: int = 100
    save_every_s: float = 30.0
    threads: int = 2


def quick() -> Recipe:
    """All stages in about a minute; what comes out knows nothing."""
    small = Network(vision_width=32, vision_inner=64, vision_layers=1, width=32, inner=64, layers=2, head_width=8)
    return replace(
        Recipe(),
        network=small,
        episodes=3,
        renders=64,
        pretrain_steps=8,
        pretrain_batch=8,
        train_steps=8,
        train_batch=4,
        evaluate_every=4,
        evaluate_starts=1,
        final_starts=2,
    )
