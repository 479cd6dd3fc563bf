"""A machine-readable corner in every frame: how many goals the follower had been sent, and when it was drawn.

Black and white blocks along the top edge, big enough to survive JPEG, chroma subsampling and video compression. With
it a test can prove which tick a recorded frame shows.
"""

import zlib
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK_PX: Final = 16
BITS: Final = 80  # marker 8, goal count 32, milliseconds 32, check 8
MARKER: Final = 0b10110010

type Image = NDArray[np.uint8]


class Stamp(NamedTuple):
    """What a frame says about itself."""

    goal_count: int  # follower goal packets on the wire before the frame was drawn
    ms: int  # CLOCK_MONOTONIC in milliseconds, modulo 2**32


def write_stamp(image: Image, goal_count: int, ms: int) -> None:
    """Draw a stamp into `image` (height, width, 3). Raises ValueError when it is too small for one."""
    columns, rows = _grid(image)
    payload = (goal_count % 2**32).to_bytes(4, "big") + (ms % 2**32).to_bytes(4, "big")
    code = bytes([MARKER]) + payload + bytes([zlib.crc32(payload) & 255])
    bits = np.zeros(columns * rows, np.uint8)
    bits[:BITS] = np.unpackbits(np.frombuffer(code, np.uint8)) * 255
    blocks = np.kron(bits.reshape(rows, columns), np.ones((BLOCK_PX, BLOCK_PX), np.uint8))
    image[: blocks.shape[0], : blocks.shape[1]] = blocks[..., None]


def read_stamp(image: Image) -> Stamp:
    """Read it back from (height, width, 3). Raises ValueError when the image carries none, or a damaged one."""
    columns, rows = _grid(image)
    strip = image[: rows * BLOCK_PX, : columns * BLOCK_PX].mean(axis=2)
    quarter = BLOCK_PX // 4
    blocks = strip.reshape(rows, BLOCK_PX, columns, BLOCK_PX)[:, quarter:-quarter, :, quarter:-quarter]
    bits = (blocks.mean(axis=(1, 3)) > 127).ravel()[:BITS]
    code = np.packbits(bits).tobytes()
    if code[0] != MARKER or code[-1] != zlib.crc32(code[1:9]) & 255:
        raise ValueError("This image carries no readable stamp")
    return Stamp(int.from_bytes(code[1:5], "big"), int.from_bytes(code[5:9], "big"))


def _grid(image: Image) -> tuple[int, int]:
    """Columns and rows of blocks that hold a stamp."""
    height, width = image.shape[:2]
    columns = width // BLOCK_PX
    rows = -(-BITS // columns) if columns else height
    if not columns or rows * BLOCK_PX > height:
        raise ValueError(f"An image of {width}x{height} is too small for a stamp")
    return columns, rows
