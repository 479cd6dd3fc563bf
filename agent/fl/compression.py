"""How the change that a station's training made is written into numbers that travel, and read again.

none    fp16
int8    one byte a number, scaled by the largest of every 128 numbers in a row
top-k   the largest share of the numbers of each array, in fp16, and their places

What int8 and top-k leave out is added to the next round's change of the same station (error feedback: Seide et al.
2014; Karimireddy et al. 2019, arXiv:1901.09847), so that nothing is lost, only late. Reading checks everything: a
station that is broken or lies must not crash a round, or make it no number.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agent.errors import BadInput
from agent.fl.settings import Compression

SCALE: Final = "#scale"
PLACES: Final = "#places"
LARGEST_INT8: Final = 127
BLOCK: Final = 128
"""Numbers that share a scale: its four bytes are 3 % then."""

LARGEST_FP16: Final = 65504.0
"""Larger numbers do not travel in any way of writing: what a round leads to is sent in fp16."""

LARGEST_SCALE: Final = np.float32(LARGEST_FP16) / np.float32(LARGEST_INT8)

type Arrays = dict[str, NDArray[np.float32]]
type Encoded = dict[str, NDArray[Any]]


def to_wire(arrays: Mapping[str, NDArray[np.float32]]) -> Encoded:
    """fp16. Raises BadInput for numbers beyond it."""
    return {name: _fp16(name, value) for name, value in arrays.items()}


def from_wire(encoded: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """fp32. Raises BadInput unless it is exactly these arrays of finite numbers."""
    _same(set(encoded), set(shapes))
    return {name: _checked(name, encoded[name], np.float16, shape).astype(np.float32) for name, shape in shapes.items()}


def encode(change: Mapping[str, NDArray[np.float32]], how: Compression, top_k: float) -> Encoded:
    """Raises BadInput for numbers that cannot be written."""
    encoded: Encoded = {}
    for name, value in change.items():
        if not travels(value):
            raise BadInput(_too_large(name))
        match how:
            case Compression.NONE:
                encoded[name] = _fp16(name, value)
            case Compression.INT8:
                blocks = _blocks(value)
                scale = (np.abs(blocks).max(axis=1) / LARGEST_INT8).astype(np.float32)
                steps = np.divide(blocks, scale[:, None], out=np.zeros_like(blocks), where=scale[:, None] > 0)
                rounded = np.clip(np.rint(steps), -LARGEST_INT8, LARGEST_INT8).astype(np.int8)
                encoded[name] = rounded.ravel()[: value.size].reshape(value.shape)
                encoded[name + SCALE] = scale
            case Compression.TOP_K:
                flat = value.ravel()
                count = kept(flat.size, top_k)
                places = np.sort(np.argpartition(np.abs(flat), flat.size - count)[flat.size - count :])
                encoded[name] = _fp16(name, flat[places])
                encoded[name + PLACES] = places.astype(np.uint32)
    return encoded


def decode(
    encoded: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], how: Compression, top_k: float
) -> Arrays:
    """Raises BadInput for anything that `encode` would not have written."""
    if how is Compression.NONE:
        return from_wire(encoded, shapes)
    suffix = SCALE if how is Compression.INT8 else PLACES
    _same(set(encoded), set(shapes) | {name + suffix for name in shapes})
    found: Arrays = {}
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        if how is Compression.INT8:
            scale = _checked(name + SCALE, encoded[name + SCALE], np.float32, (-(-size // BLOCK),))
            if not ((scale >= 0) & (scale <= LARGEST_SCALE)).all():
                raise BadInput(f"The scales of {name} are none that are written.")
            steps = _checked(name, encoded[name], np.int8, shape).ravel().astype(np.float32)
            found[name] = (steps * np.repeat(scale, BLOCK)[:size]).reshape(shape)
        else:
            count = kept(size, top_k)
            values = _checked(name, encoded[name], np.float16, (count,))
            places = _checked(name + PLACES, encoded[name + PLACES], np.uint32, (count,))
            if (np.diff(places.astype(np.int64)) <= 0).any() or int(places[-1]) >= size:
                raise BadInput(f"The places of {name} are not places in it.")
            flat = np.zeros(size, np.float32)
            flat[places] = values
            found[name] = flat.reshape(shape)
    return found


def travels(value: NDArray[np.float32]) -> bool:
    """Whether it consists of numbers that fp16 has."""
    return bool((np.abs(value) <= LARGEST_FP16).all())


def kept(size: int, top_k: float) -> int:
    """How many of so many numbers top-k sends: at least one."""
    return max(1, round(size * top_k))


def bytes_of(encoded: Mapping[str, NDArray[Any]]) -> int:
    return sum(value.nbytes for value in encoded.values())


def _blocks(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shape (blocks, 128), the last one filled up with zeros."""
    flat = np.zeros(-(-value.size // BLOCK) * BLOCK, np.float32)
    flat[: value.size] = value.ravel()
    return flat.reshape(-1, BLOCK)


def _fp16(name: str, value: NDArray[np.float32]) -> NDArray[np.float16]:
    if not travels(value):
        raise BadInput(_too_large(name))
    return value.astype(np.float16)


def _too_large(name: str) -> str:
    return f"{name} holds numbers beyond {LARGEST_FP16:g}, or none."


def _same(found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        odd = sorted(found ^ wanted)
        raise BadInput(f"The arrays are not those of this run's adapter: {', '.join(odd[:3])} and others.")


def _checked(name: str, value: NDArray[Any], dtype: type, shape: tuple[int, ...]) -> NDArray[Any]:
    if value.dtype != np.dtype(dtype) or value.shape != shape:
        raise BadInput(f"{name} is {value.dtype} {value.shape} instead of {np.dtype(dtype)} {shape}.")
    if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
        raise BadInput(f"{name} holds what is no number.")
    return value
