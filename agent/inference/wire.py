"""The messages between a station and a policy server on another machine.

A message is a protocol version, a header in msgpack, and the raw buffers that the header announces: pictures, then
guidance, then noise; a reply's only buffer is its actions. Numbers in buffers are little-endian float32. The limits
are part of the types: what breaks one is not decoded. Nothing here is ever pickled.
"""

import io
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from PIL import Image as Pictures

from agent.config import NAME_PATTERN
from agent.errors import BadInput
from agent.inference.engine import Guidance, Image, Observation, Traits
from agent.messages import JOINTS, Joints, encode
from agent.transport import UNREADABLE

REMOTE_VERSION: Final = 1
"""Bumped when a message changes incompatibly; peers with another version are refused."""

VERSION: Final = str(REMOTE_VERSION).encode()
"""The first part of every message, in both directions. It stays first in every version to come."""

MAX_SIDE_PX: Final = 2048
"""Policies look at 512 pixels; cameras for them rarely have more than 1920."""

MAX_PICTURES: Final = 9
"""As many as there are views, OBS_IMAGE_1 to OBS_IMAGE_9."""

MAX_MESSAGE_BYTES: Final = 32 * 1024**2
"""All parts together. Two raw 640x480 pictures have 1.8 MB, nine 1280x720 ones 25 MB."""

MAX_PART_BYTES: Final = 64 * 1024**2
"""A single part that announces more is not even received: the connection is cut. Above MAX_MESSAGE_BYTES, so that
an honest mistake gets a sentence."""

MAX_HEADER_BYTES: Final = 64 * 1024

MAX_TASK_CHARS: Final = 200
"""More than any tokenizer of a policy reads."""

MAX_ROWS: Final = 1000
"""Actions in a chunk; lerobot's policies have 16 to 100."""

MAX_NOISE_COLUMNS: Final = 256
"""Action dimension of a model; SmolVLA's is 32."""

JPEG_QUALITY: Final = 95
"""A 640x480 picture has 60 to 110 kB instead of 922, and is wrong by 1.3 to 3 of 255 on average."""

type Noise = NDArray[np.float32]
type Buffer = bytes | memoryview

_Id = Annotated[int, Meta(ge=1, le=2**63 - 1)]
_Side = Annotated[int, Meta(ge=1, le=MAX_SIDE_PX)]
_Rows = Annotated[int, Meta(ge=1, le=MAX_ROWS)]
_Count = Annotated[int, Meta(ge=0, le=MAX_ROWS)]
_Policy = Annotated[str, Meta(pattern=NAME_PATTERN)]
_Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{12}$")]


class Encoding(StrEnum):
    RGB8 = "rgb8"  # height * width * 3 bytes, row-major
    JPEG = "jpeg"  # for slow networks; the policy sees slightly other pictures


class Picture(msgspec.Struct, frozen=True):
    feature: Annotated[str, Meta(min_length=1, max_length=128)]  # the policy's own name
    width: _Side
    height: _Side
    encoding: Encoding = Encoding.RGB8


class Guide(msgspec.Struct, frozen=True):
    """`agent.inference.engine.Guidance`; its actions are a buffer of `rows` times six numbers."""

    rows: _Rows
    delay: _Count
    horizon: _Count


class Grain(msgspec.Struct, frozen=True):
    """The noise that a chunk is made from; a buffer of `rows` times `columns` numbers."""

    rows: _Rows
    columns: Annotated[int, Meta(ge=1, le=MAX_NOISE_COLUMNS)]


# --- a station asks -------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """What is this policy like there? Also has it loaded."""

    id: _Id
    policy: _Policy
    hash: _Hash  # of the station's own bundle


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """A chunk, please. A later one replaces one of the same station that still waits."""

    id: _Id
    policy: _Policy
    hash: _Hash
    joints: Joints
    task: Annotated[str, Meta(max_length=MAX_TASK_CHARS)]
    pictures: Annotated[tuple[Picture, ...], Meta(max_length=MAX_PICTURES)]
    guidance: Guide | None = None
    noise: Grain | None = None


type Request = Hello | Ask


# --- the server replies, with the id of the request -----------------------------------------------------


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    id: int
    traits: Traits  # measured there


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """The policy is on its way into memory; ask again."""

    id: int


class Predicted(msgspec.Struct, frozen=True, tag="predicted"):
    """Comes with a buffer of `rows` times six numbers."""

    id: int
    rows: _Rows
    inference_ns: int  # without waiting


class Declined(msgspec.Struct, frozen=True, tag="declined"):
    """`code` is one of `agent.errors.FAMILY`, or SUPERSEDED. `id` is 0 where the request's could not be read."""

    id: int
    code: str
    message: str
    hint: str = ""


type Reply = Welcome | Loading | Predicted | Declined

SUPERSEDED: Final = "superseded"


# --- from and to parts ----------------------------------------------------------------------------------


def decode_request(header: Buffer) -> Request:
    """Raises BadInput: not msgpack, not a request, or beyond a limit."""
    if len(header) > MAX_HEADER_BYTES:
        raise BadInput(f"The header has {len(header)} bytes; at most {MAX_HEADER_BYTES} are allowed.")
    try:
        return _REQUEST.decode(header)
    except UNREADABLE as error:
        raise BadInput(f"The request cannot be read: {error}.") from error


def id_in(header: Buffer) -> int:
    """The id of a request that is otherwise not understood; 0 where there is none."""
    try:
        return _ID.decode(header).id if len(header) <= MAX_HEADER_BYTES else 0
    except UNREADABLE:
        return 0


def decode_reply(header: Buffer) -> Reply:
    """Raises BadInput."""
    try:
        return _REPLY.decode(header)
    except UNREADABLE as error:
        raise BadInput(f"The reply cannot be read: {error}.") from error


def pack(
    number: int,
    policy: str,
    digest: str,
    observation: Observation,
    guidance: Guidance | None,
    noise: Noise | None,
    encoding: Encoding,
) -> list[bytes]:
    """Header and buffers of a request. Raises BadInput when it would be refused anyway."""
    pictures, buffers = [], []
    for feature, image in observation.images.items():
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or max(image.shape) > MAX_SIDE_PX:
            raise BadInput(
                f"The picture of {feature} has shape {image.shape} of {image.dtype}; "
                f"a policy server takes RGB of 8 bits, {MAX_SIDE_PX} pixels a side at most.",
                "Set a smaller width and height of the camera in the configuration.",
            )
        height, width, _ = image.shape
        pictures.append(Picture(feature, width, height, encoding))
        buffers.append(image.tobytes() if encoding is Encoding.RGB8 else _jpeg(image))
    guide = grain = None
    if guidance is not None:
        guide = Guide(len(guidance.actions), guidance.delay, guidance.horizon)
        buffers.append(guidance.actions.astype("<f4").tobytes())
    if noise is not None:
        grain = Grain(*noise.shape)
        buffers.append(noise.astype("<f4").tobytes())
    ask = Ask(number, policy, digest, observation.joints, observation.task, tuple(pictures), guide, grain)
    return [encode(ask), *buffers]


def unpack(ask: Ask, buffers: Sequence[Buffer]) -> tuple[Observation, Guidance | None, Noise | None]:
    """What a request asks about. Raises BadInput when its buffers are not what its header says."""
    expected = len(ask.pictures) + (ask.guidance is not None) + (ask.noise is not None)
    if len(buffers) != expected:
        raise BadInput(f"The request has {len(buffers)} buffers; its header announces {expected}.")
    if not np.isfinite(ask.joints).all():
        raise BadInput(f"The joints {ask.joints} are no numbers.")
    rest = iter(buffers)
    images = {picture.feature: _image(picture, next(rest)) for picture in ask.pictures}
    guidance = noise = None
    if ask.guidance is not None:
        actions = _finite(next(rest), ask.guidance.rows, len(JOINTS), "guidance")
        guidance = Guidance(actions, ask.guidance.delay, ask.guidance.horizon)
    if ask.noise is not None:
        noise = _finite(next(rest), ask.noise.rows, ask.noise.columns, "noise")
    return Observation(ask.joints, images, ask.task), guidance, noise


def floats(buffer: Buffer, rows: int, columns: int, what: str) -> NDArray[np.float32]:
    """A buffer as an array of this shape, perhaps not finite. Raises BadInput when it has another size."""
    if len(buffer) != rows * columns * 4:
        raise BadInput(f"The {what} has {len(buffer)} bytes; {rows}x{columns} numbers have {rows * columns * 4}.")
    return np.frombuffer(buffer, "<f4").reshape(rows, columns).astype(np.float32)


def _finite(buffer: Buffer, rows: int, columns: int, what: str) -> NDArray[np.float32]:
    numbers = floats(buffer, rows, columns, what)
    if not np.isfinite(numbers).all():
        raise BadInput(f"The {what} holds values that are no numbers.")
    return numbers


def _image(picture: Picture, buffer: Buffer) -> Image:
    wanted = picture.height * picture.width * 3
    match picture.encoding:
        case Encoding.RGB8:
            if len(buffer) != wanted:
                size = f"{picture.width}x{picture.height}"
                raise BadInput(f"The picture of {picture.feature} has {len(buffer)} bytes; {size} has {wanted}.")
            return np.frombuffer(buffer, np.uint8).reshape(picture.height, picture.width, 3)
        case Encoding.JPEG:
            return _from_jpeg(picture, buffer)


def _jpeg(image: Image) -> bytes:
    file = io.BytesIO()
    Pictures.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _from_jpeg(picture: Picture, buffer: Buffer) -> Image:
    try:
        with Pictures.open(io.BytesIO(buffer), formats=("JPEG",)) as file:
            # Before anything is decoded: a few bytes can announce gigabytes.
            if file.size != (picture.width, picture.height):
                announced = f"{picture.width}x{picture.height}"
                raise BadInput(f"The picture of {picture.feature} is {file.size[0]}x{file.size[1]}, not {announced}.")
            return np.asarray(file.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Pictures.DecompressionBombError) as error:  # as Pillow documents
        raise BadInput(f"The picture of {picture.feature} is not a JPEG: {error}.") from error


class _Numbered(msgspec.Struct):
    id: _Id


_REQUEST: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Hello | Ask)
_REPLY: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Welcome | Loading | Predicted | Declined)
_ID: msgspec.msgpack.Decoder[_Numbered] = msgspec.msgpack.Decoder(_Numbered)
