"""Pictures, task and joints to what the action expert remembers of them.

The language model's own result is of no use to anybody: the expert looks only at the keys and values of its layers.
They are the same in every flow step, so what the expert makes of them is computed here, once a chunk.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent.inference.engines.smolvla.attention import attend, feed_forward, heads, norm, split
from agent.inference.engines.smolvla.rotary import rotate, rotation
from agent.inference.engines.smolvla.weights import CrossLayer, Expert, Layer, Prefix


@dataclass(frozen=True)
class Memory:
    """Keys and values for each layer of the expert, (k, length, e) each."""

    layers: Sequence[tuple[Tensor, Tensor]]
    length: int


def embed_task(tokens: Tensor, weights: Prefix) -> Tensor:
    """Token numbers (n,), without padding, to (n, d)."""
    words = weights.words[tokens]
    return words * math.sqrt(words.shape[-1])


def assemble(images: Sequence[Tensor], task: Tensor, state: Tensor, weights: Prefix) -> Tensor:
    """Tokens of each picture, of the task, (n, d) each, and the state (s,) in the order of training: (length, d)."""
    before, after = weights.around_image
    parts = [part for image in images for part in (before, image, after)]
    return torch.cat([*parts, task, weights.state(state)[None]])


def remember(x: Tensor, weights: Prefix, expert: Expert) -> Memory:
    """Read the prefix `x`, (length, d), of which the last token is the state: it sees all others, none sees it."""
    length = len(x)
    turn = rotation(0, length, weights.heads.width, x.device)
    mask = torch.ones(length, length, dtype=torch.bool, device=x.device)
    mask[:-1, -1] = False
    memory = []
    for layer, reader in zip(weights.layers, expert.layers, strict=False):
        query, key, value = split(layer.qkv(norm(x, layer.norm_in, weights.epsilon)), weights.heads, weights.attention)
        key = rotate(key, turn)
        memory.append(_kept(key, value, reader))
        x = x + layer.out(attend(rotate(query, turn), key, value, mask))
        x = x + feed_forward(x, layer, weights.epsilon)
    key, value = weights.last_kv(norm(x, weights.last_norm, weights.epsilon)).chunk(2, dim=-1)
    key = rotate(heads(key, weights.heads.keys, weights.attention), turn)
    memory.append(_kept(key, heads(value, weights.heads.keys, weights.attention), expert.layers[-1]))
    return Memory(memory, length)


def _kept(key: Tensor, value: Tensor, reader: Layer | CrossLayer) -> tuple[Tensor, Tensor]:
    """What a layer of the expert looks at: the language model's keys and values, or its own view of them."""
    if isinstance(reader, Layer):
        return key, value
    count = len(key)
    own_key = reader.memory_key(key.transpose(0, 1).flatten(1))
    own_value = reader.memory_value(value.transpose(0, 1).flatten(1))
    return heads(own_key, count, key.dtype), heads(own_value, count, value.dtype)
