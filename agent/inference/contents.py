"""What may lie in a policy's folder: safetensors, JSON and text. Everything else is left out, and what could be a
pickle is refused, because loading one runs its author's code.

Needs neither torch nor lerobot.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.errors import BadInput

MIB: Final = 1024**2
GIB: Final = 1024**3

MAX_TEXT_BYTES: Final = 64 * MIB
"""The largest tokenizer in use (256,000 tokens) has 33 MB."""

MAX_WEIGHTS_BYTES: Final = 16 * GIB
"""Four billion parameters in fp32: more than a computer beside an arm can run."""

MAX_FILES: Final = 200
"""A checkpoint has some ten."""

MAX_HEADER_BYTES: Final = 100 * MIB
"""The limit of the safetensors format itself."""

TEXT_SUFFIXES: Final = frozenset({".json", ".txt", ".jinja", ".md"})
WEIGHTS_SUFFIX: Final = ".safetensors"

PICKLE_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npz"})

SAFE: Final = "Only safetensors are taken: loading a pickle runs the code of whoever made it."


@dataclass(frozen=True)
class Tensor:
    """What the header of a safetensors file says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def files_in(folder: Path) -> Iterator[Path]:
    """Every file below a folder, hidden ones too. Raises BadInput for links, devices, and too many files."""
    count = 0
    for parent, folders, names in folder.walk():
        for name in (*folders, *names):
            path = parent / name
            if path.is_symlink():
                raise BadInput(f"{path} is a symbolic link.", f"Copy what it points to: cp -rL {folder} COPY.")
        for name in sorted(names):
            path = parent / name
            if not path.is_file():
                raise BadInput(f"{path} is not a plain file.", "Remove it.")
            count += 1
            if count > MAX_FILES:
                raise BadInput(f"{folder} holds more than {MAX_FILES} files.", "Name the folder of one checkpoint.")
            yield path


def refuse_pickles(folder: Path) -> None:
    """Raises BadInput when a file below the folder is, or could be, a pickle."""
    for path in files_in(folder):
        if reason := pickled(path):
            raise BadInput(f"{path} {reason}.", f"{SAFE} Remove the file, or save the policy as safetensors.")


def pickled(path: Path) -> str:
    """Why a file could be a pickle; empty when it is none."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return f"has the name of a pickle ({path.suffix})"
    with _readable(path).open("rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "is a zip archive, as torch.save makes them"
    if head[257:262] == b"ustar":
        return "is a tar archive, as old versions of torch.save made them"
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5 and not _begins_as_safetensors(head):
        return "is a pickle"
    return ""


def check(path: Path) -> None:
    """One file of a bundle: of a kind that belongs there, and what its name says. Raises BadInput."""
    if reason := pickled(path):
        raise BadInput(f"{path} {reason}.", SAFE)
    if path.suffix == WEIGHTS_SUFFIX:
        tensors(path)
    elif path.suffix == ".json":
        read_json(path)
    elif path.suffix in TEXT_SUFFIXES:
        _text(path)
    else:
        raise BadInput(f"{path} is of no kind that belongs into a policy.", "Remove it, or import the policy again.")


def tensors(path: Path) -> dict[str, Tensor]:
    """The header of a safetensors file. Raises BadInput unless file and header agree to the byte."""
    size = _size(path, MAX_WEIGHTS_BYTES)
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        found = {
            name: (Tensor(str(about["dtype"]), tuple(map(int, about["shape"]))), tuple(map(int, about["data_offsets"])))
            for name, about in header.items()
            if name != "__metadata__"
        }
        end = 0
        for _, (first, last) in sorted(found.values(), key=lambda item: item[1]):
            if first != end or last < first:
                raise ValueError("tensors overlap, or leave a gap")
            end = last
        if 8 + length + end != size:
            raise ValueError(f"{size} bytes where {8 + length + end} were expected")
    except (OSError, struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path} is not a whole safetensors file: {error}.", "Copy it again from its source.") from error
    return {name: tensor for name, (tensor, _) in found.items()}


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file. Raises BadInput when the file is missing, too large, or something else."""
    try:
        values = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not valid JSON: {error}.", "Copy it again from its source.") from error
    if not isinstance(values, dict):
        raise BadInput(f"{path} holds a {type(values).__name__} where an object was expected.", "Is it the right file?")
    return values


def _text(path: Path) -> str:
    _size(path, MAX_TEXT_BYTES)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"Cannot read {path} as text: {error}.", "Copy it again from its source.") from error


def _size(path: Path, most: int) -> int:
    size = _readable(path).stat().st_size
    if size > most:
        raise BadInput(
            f"{path} has {size / MIB:,.0f} MB; at most {most / MIB:,.0f} MB are taken.", "Is it a policy's file?"
        )
    return size


def _readable(path: Path) -> Path:
    if not path.is_file():
        raise BadInput(f"{path} is missing.", "Copy the whole folder of the policy.")
    return path


def _begins_as_safetensors(head: bytes) -> bool:
    """The length of the header may begin with the same two bytes as a pickle; its upper half cannot."""
    return head[4:8] == bytes(4) and head[8:9] == b"{"
