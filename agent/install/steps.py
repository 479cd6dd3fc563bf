"""The steps of a plan. Each knows whether it is still to be done, so that a plan can be shown, and repeated safely."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from agent.errors import BadInput, DeviceFault

COMMAND_S: Final = 240.0
"""Starting a service may take as long as the imports on a small board, and stopping as parking and committing: 180 s
at most, by the unit."""

KEPT_SUFFIX: Final = ".before"
"""A file of a person that is replaced is kept under this name."""


class State(StrEnum):
    """What a step would do now."""

    SAME = "same"
    CREATE = "create"
    CHANGE = "change"
    REMOVE = "remove"
    RUN = "run"


class Step(Protocol):
    """One thing to do. `subject` says what it is about."""

    @property
    def subject(self) -> str: ...

    @property
    def why(self) -> str: ...

    def state(self) -> State: ...

    def apply(self) -> None: ...


@dataclass(frozen=True)
class Folder:
    path: Path
    why: str
    mode: int = 0o755

    @property
    def subject(self) -> str:
        return f"{self.path}/"

    def state(self) -> State:
        if not self.path.is_dir():
            return State.CREATE
        return State.SAME if self.path.stat().st_mode & 0o777 == self.mode else State.CHANGE

    def apply(self) -> None:
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(self.mode)


@dataclass(frozen=True)
class File:
    """A file with exactly this text. With `keep`, what was there before is kept beside it."""

    path: Path
    text: str
    why: str
    mode: int = 0o644
    keep: bool = False

    @property
    def subject(self) -> str:
        return str(self.path)

    def state(self) -> State:
        try:
            found = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return State.CREATE
        except (OSError, UnicodeDecodeError):
            return State.CHANGE
        same = found == self.text and self.path.stat().st_mode & 0o777 == self.mode
        return State.SAME if same else State.CHANGE

    def apply(self) -> None:
        with _writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.keep and self.path.exists():
                shutil.copy2(self.path, self.path.with_name(self.path.name + KEPT_SUFFIX))
            fresh = self.path.with_name(f".{self.path.name}.new")
            fresh.write_text(self.text, encoding="utf-8")
            fresh.chmod(self.mode)
            fresh.replace(self.path)


@dataclass(frozen=True)
class Copy:
    """A file that is brought along once. One that is there already is newer, and stays."""

    source: Path
    path: Path
    why: str

    @property
    def subject(self) -> str:
        return str(self.path)

    def state(self) -> State:
        return State.SAME if self.path.exists() else State.CREATE

    def apply(self) -> None:
        with _writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.source, self.path)


@dataclass(frozen=True)
class Link:
    path: Path
    target: str
    why: str

    @property
    def subject(self) -> str:
        return f"{self.path} -> {self.target}"

    def state(self) -> State:
        if not self.path.is_symlink():
            return State.CHANGE if self.path.exists() else State.CREATE
        return State.SAME if os.readlink(self.path) == self.target else State.CHANGE

    def apply(self) -> None:
        with _writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            self.path.symlink_to(self.target)


@dataclass(frozen=True)
class Gone:
    """A file, a link or an empty folder of ours that is taken away."""

    path: Path
    why: str

    @property
    def subject(self) -> str:
        return str(self.path)

    def state(self) -> State:
        return State.REMOVE if os.path.lexists(self.path) else State.SAME

    def apply(self) -> None:
        with _writing(self.path):
            if self.path.is_dir() and not self.path.is_symlink():
                if not any(self.path.iterdir()):  # an administrator's own drop-ins stay
                    self.path.rmdir()
            else:
                self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Run:
    """A command; `done` when it has nothing to do."""

    argv: tuple[str, ...]
    why: str
    done: bool = False

    @property
    def subject(self) -> str:
        return " ".join(self.argv)

    def state(self) -> State:
        return State.SAME if self.done else State.RUN

    def apply(self) -> None:
        try:
            ran = subprocess.run(self.argv, capture_output=True, text=True, timeout=COMMAND_S, check=False)
        except FileNotFoundError as error:
            raise BadInput(f"`{self.argv[0]}` is not installed on this machine.", "It belongs to systemd.") from error
        except subprocess.TimeoutExpired as error:
            raise DeviceFault(f"`{self.subject}` did not end within {COMMAND_S:g} s.") from error
        if ran.returncode:
            last = (ran.stderr or ran.stdout).strip() or f"exit status {ran.returncode}"
            raise DeviceFault(f"`{self.subject}` failed: {last}", "What was done until then stays; run it again.")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "Run it with sudo." if isinstance(error, PermissionError) else ""
        raise BadInput(f"{path} cannot be written: {error.strerror or error}.", hint) from error
