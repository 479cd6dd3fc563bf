"""The e-stop latch on disk: an emergency stop outlives every process and every power cycle of the host."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.errors import Fatal


@dataclass(frozen=True)
class Latch:
    """Why the arm was stopped, and when (seconds since the epoch)."""

    cause: str
    wall_s: float

    @property
    def reason(self) -> str:
        """Of the arm, for standing still."""
        return f"emergency stop: {self.cause}"


def read(path: Path) -> Latch | None:
    """The latch, None when there is none. One that cannot be read counts as latched."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Latch(str(values["cause"]), float(values["wall_s"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Latch(f"an earlier stop whose record {path} cannot be read", 0.0)


def write(path: Path, latch: Latch) -> None:
    """Durable when it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(asdict(latch), file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    _sync(path.parent)


def clear(path: Path) -> None:
    """Raises Fatal when it stays."""
    try:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            _sync(path.parent)
    except OSError as error:
        raise Fatal(f"The e-stop latch cannot be removed: {error}.", "Make the state folder writable.") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
