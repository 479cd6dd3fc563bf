"""Checkpoints of a training: a kill at any moment leaves the last whole one.

checkpoints/000120/
    weights.safetensors     what training changes; the rest is in the bundle
    training_state/         as lerobot writes it: optimiser, schedule, random numbers, step
    progress.json           the losses so far
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from safetensors import SafetensorError

from agent.errors import Fatal
from agent.inference.importer import sync

WEIGHTS: Final = "weights.safetensors"
PROGRESS: Final = "progress.json"
STAGING: Final = ".new-"
DIGITS: Final = 6  # as lerobot names its own


class Progress(msgspec.Struct):
    """What a training remembers about its way."""

    step: int = 0
    before: float | None = None  # loss on held-out episodes, before the first step
    seconds: float = 0.0
    curve: list[tuple[int, float]] = msgspec.field(default_factory=list)  # step, mean loss since the one before
    window: list[float] = msgspec.field(default_factory=list)  # losses since the last point of the curve


def save(checkpoints: Path, progress: Progress, write: Callable[[Path], None]) -> None:
    """`write` fills the folder; when this returns it is on the disk, and the older ones are gone.

    Raises Fatal when it cannot be written; the last one is whole then.
    """
    step = progress.step
    staged = checkpoints / f"{STAGING}{step}"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        for old in checkpoints.glob(f"{STAGING}*"):
            shutil.rmtree(old)  # of a process that was killed
        staged.mkdir()
        write(staged)
        (staged / PROGRESS).write_bytes(msgspec.json.encode(progress))
        for path in sorted(staged.rglob("*"), reverse=True):
            sync(path)
        sync(staged)
        target = checkpoints / f"{step:0{DIGITS}d}"
        if target.exists():  # saved twice at one step, e.g. at the end
            shutil.rmtree(staged)
            return
        staged.rename(target)
        sync(checkpoints)
        for old in checkpoints.glob("[0-9]*"):
            if old != target:
                shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise Fatal(
            f"The training cannot be saved in {checkpoints}: {error}.",
            "Free disk space, then go on with `so-agent train --resume`.",
        ) from error


def progress_of(checkpoint: Path) -> Progress:
    """Raises Fatal when it cannot be read."""
    try:
        return msgspec.json.decode((checkpoint / PROGRESS).read_bytes(), type=Progress)
    except (OSError, msgspec.DecodeError) as error:
        raise Fatal(f"Cannot read {checkpoint / PROGRESS}: {error}.", "Begin the training anew.") from error
