"""What the language model's layers and the expert's have in common."""

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.inference.engines.smolvla.weights import CrossLayer, Heads, Layer


def norm(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), scale, epsilon)


def heads(x: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """(length, count e) to (count, length, e)."""
    return x.view(len(x), count, -1).transpose(0, 1).to(dtype)


def split(qkv: Tensor, by: Heads, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(length, (h + 2 k) e) to queries (h, length, e), keys and values (k, length, e)."""
    sizes = [by.queries * by.width, by.keys * by.width, by.keys * by.width]
    query, key, value = torch.split_with_sizes(qkv, sizes, dim=-1)
    return heads(query, by.queries, dtype), heads(key, by.keys, dtype), heads(value, by.keys, dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Queries (h, n, e) over keys and values (k, m, e), each shared by h / k heads, to (n, h e)."""
    seen = F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask, enable_gqa=True)
    return seen[0].transpose(0, 1).flatten(1)


def feed_forward(x: Tensor, layer: Layer | CrossLayer, epsilon: float) -> Tensor:
    """What a layer adds to `x`, (length, width), after attention."""
    gate, up = layer.gate_up(norm(x, layer.norm_ff, epsilon)).chunk(2, dim=-1)
    return layer.down(F.silu(gate) * up)
