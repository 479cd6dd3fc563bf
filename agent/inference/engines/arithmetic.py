"""The number formats a matrix may be multiplied in.

Between two matrices everything is float32: sums of many layers, norms, softmax. Only the factors are made smaller,
because on a CPU it is reading and multiplying them that takes the time.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

BYTE_LIMIT: Final = 127

PROBE_SHAPE: Final = (256, 768, 1024)  # rows, inputs, outputs: the shape that SmolVLA's vision tower is made of
PROBE_REPEATS: Final = 4

WORTH: Final = 1.15
"""A smaller format must be this much faster here, or it is not worth its rounding."""


class Linear(Protocol):
    """`x` of shape (..., inputs) to (..., outputs)."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Dense:
    """A matrix in its own float type; takes any float type and gives its own."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Bytes:
    """A matrix of bytes, scaled row by row. What it multiplies is made bytes anew each time; float32 in and out.

    This is PyTorch's own kernel (FBGEMM or oneDNN), which needs neither AVX-512 nor calibration. Without VNNI it adds
    two products in 16 bits, which overflows unless one factor has seven bits. The weight keeps eight: that way round
    chunks deviated less (docs/decisions/0010).
    """

    _whole_bytes = torch.cpu._is_vnni_supported()

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        rows = weight.float()
        scale = (rows.abs().amax(dim=1) / BYTE_LIMIT).clamp(min=torch.finfo(torch.float32).tiny)
        zero = torch.zeros(len(rows), dtype=torch.long)
        quantised = torch.quantize_per_channel(rows, scale, zero, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(quantised, None if bias is None else bias.float())

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.quantized.linear_dynamic(
            x.float(), self._packed, reduce_range=not self._whole_bytes
        )
        return product


class Arithmetic(Protocol):
    """How an engine's matrices are kept, and the float type in which it attends."""

    @property
    def name(self) -> str: ...

    @property
    def attention(self) -> torch.dtype: ...

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear: ...


class Float32:
    name = "fp32"
    attention = torch.float32

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        return Dense(weight, bias, torch.float32)


class BFloat16:
    name = "bf16"
    attention = torch.bfloat16

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        return Dense(weight, bias, torch.bfloat16)


class Int8:
    name = "int8"
    attention = torch.float32

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        return Bytes(weight, bias)


@cache
def speedup(arithmetic: Arithmetic) -> float:
    """How many times faster than float32 this host multiplies in it, by trying. Takes some 50 ms, once a process.

    0.25 is common: a CPU without AVX-512 BF16 or AMX has to imitate bfloat16.
    """
    rows, inputs, outputs = PROBE_SHAPE
    weight, x = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    plain, other = Float32().linear(weight), arithmetic.linear(weight)
    with torch.inference_mode():
        return _fastest(lambda: plain(x)) / _fastest(lambda: other(x))


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs."""
    run()
    times = []
    for _ in range(PROBE_REPEATS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)
