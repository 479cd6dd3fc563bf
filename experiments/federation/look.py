"""What the frozen vision tower says about renders, computed once, and the language model's way of taking it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from experiments.demo_policy.network import tower
from experiments.demo_policy.pretrain import pixels
from experiments.demo_policy.recipe import CAMERAS, Network
from experiments.demo_policy.renders import Render

EMBED_BATCH: Final = 128
LEVEL_RENDERS: Final = 100

type Looked = dict[str, torch.Tensor]


def level(policy: SmolVLAPolicy, renders: Render, network: Network) -> None:
    """Give image tokens the size of the other tokens; see experiments/demo_policy/train.py."""
    sample = slice(None, None, max(1, len(renders.joints) // LEVEL_RENDERS))
    with torch.no_grad():
        images = torch.cat([torch.from_numpy(getattr(renders, camera)[sample]) for camera in CAMERAS])
        size = _backbone(policy).embed_image(pixels(images, network.image_px)).pow(2).mean().sqrt()
        tower(policy)[1].modality_projection.proj.weight /= size * network.width**0.5


def look(policy: SmolVLAPolicy, renders: Render, network: Network) -> Looked:
    """Of each camera (renders, tokens, width)."""
    found = {}
    for camera in CAMERAS:
        images: torch.Tensor = torch.from_numpy(getattr(renders, camera))
        with torch.no_grad():
            parts = [
                _backbone(policy).embed_image(pixels(some, network.image_px)) for some in images.split(EMBED_BATCH)
            ]
        found[camera] = torch.cat(parts)
    return found


@contextmanager
def looked_at(policy: SmolVLAPolicy) -> Iterator[None]:
    """Within it, the policy takes what the tower says in the place of pictures."""
    backbone = _backbone(policy)
    backbone.embed_image = _as_it_is
    try:
        yield
    finally:
        del backbone.embed_image


def _backbone(policy: SmolVLAPolicy) -> Any:
    return policy.model.vlm_with_expert


def _as_it_is(tokens: torch.Tensor) -> torch.Tensor:
    return tokens
