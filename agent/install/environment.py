"""The Python environment that a service is to run in: where it is, and what of it the sandbox would hide."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import agent
from agent.errors import BadInput

HIDDEN: Final = tuple(Path(folder) for folder in ("/home", "/root", "/run/user"))
"""What ProtectHome= hides."""

TEMPORARY: Final = tuple(Path(folder) for folder in ("/tmp", "/var/tmp"))  # noqa: S108 - named, not used
"""What PrivateTmp= hides, and the next boot may empty."""


@dataclass(frozen=True)
class Environment:
    """`folder` holds bin/python; `needs` are all folders that must be readable for it to run, outermost only."""

    folder: Path
    needs: tuple[Path, ...]

    @classmethod
    def here(cls) -> "Environment":
        """The one that this process runs in."""
        source = Path(agent.__file__).resolve().parents[1]
        return cls(Path(sys.prefix), _outermost([Path(sys.prefix), Path(sys.base_prefix), source, *_home()]))

    @classmethod
    def at(cls, folder: Path) -> "Environment":
        """Another one, by its absolute path on the machine that the service will run on."""
        if not folder.is_absolute():
            raise BadInput(f"--environment {folder} is no absolute path.", "Give it as the service will see it.")
        return cls(folder, (folder,))

    @property
    def command(self) -> str:
        """How the service calls `so-agent`."""
        return f"{self.folder}/bin/python -m agent.cli"

    @property
    def hidden(self) -> tuple[Path, ...]:
        """The folders that the sandbox would hide, and that must be shown to it."""
        return tuple(path for path in self.needs if any(path.is_relative_to(place) for place in HIDDEN + TEMPORARY))

    @property
    def temporary(self) -> bool:
        return any(path.is_relative_to(place) for path in self.needs for place in TEMPORARY)

    def missing(self, root: Path) -> tuple[Path, ...]:
        """What is not there on that machine."""
        return tuple(path for path in self.needs if not below(root, path).exists())


def below(root: Path, path: Path) -> Path:
    """`path` of a machine whose file system lies at `root`."""
    return root / path.relative_to("/")


def _home() -> list[Path]:
    """Where bin/python really lies: another folder than base_prefix where links lead there."""
    real = Path(os.path.realpath(sys.executable))
    return [real.parents[1]]


def _outermost(paths: list[Path]) -> tuple[Path, ...]:
    """Without those inside of others, and without the system's own folders, which every service sees."""
    found: list[Path] = []
    for path in sorted({Path(os.path.normpath(path)) for path in paths}, key=lambda path: len(path.parts)):
        if path in (Path("/"), Path("/usr")) or any(path.is_relative_to(outer) for outer in found):
            continue
        found.append(path)
    return tuple(found)
