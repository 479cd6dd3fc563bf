"""A picture to tokens: SigLIP's vision tower and the connector behind it."""

import math

import torch.nn.functional as F
from torch import Tensor

from agent.inference.engines.smolvla.weights import Vision, VisionLayer


def look(image: Tensor, weights: Vision) -> Tensor:
    """An image of shape (3, size, size) in -1..1 to tokens of the language model, (patches / shrink², d)."""
    x = F.conv2d(image[None], weights.patches, weights.patches_bias, stride=weights.patches.shape[-1])
    x = x[0].flatten(1).T + weights.positions
    for layer in weights.layers:
        x = x + _attend(_norm(x, layer.norm_in, weights.epsilon), layer, weights)
        hidden = F.gelu(layer.up(_norm(x, layer.norm_ff, weights.epsilon)), approximate="tanh")
        x = x + layer.down(hidden)
    tokens = weights.project(_shrink(_norm(x, weights.norm_out, weights.epsilon), weights.shrink)).float()
    return tokens * math.sqrt(tokens.shape[-1])


def _attend(x: Tensor, layer: VisionLayer, weights: Vision) -> Tensor:
    """`x` of shape (patches, v); every patch attends to every patch."""
    length, width = x.shape
    qkv = layer.qkv(x).view(1, length, 3, weights.heads, width // weights.heads).to(weights.attention)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    seen = F.scaled_dot_product_attention(query, key, value)
    return layer.out(seen[0].transpose(0, 1).reshape(length, width))


def _norm(x: Tensor, weights: Tensor, epsilon: float) -> Tensor:
    scale, shift = weights
    return F.layer_norm(x, (x.shape[-1],), scale, shift, epsilon)


def _shrink(x: Tensor, by: int) -> Tensor:
    """(side², v) to (side² / by², v by²): squares of `by` x `by` patches become one token."""
    side, width = round(len(x) ** 0.5), x.shape[-1]
    squares = x.view(side // by, by, side // by, by, width).transpose(1, 2)
    return squares.reshape((side // by) ** 2, by * by * width)
