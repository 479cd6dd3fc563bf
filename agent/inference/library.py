"""The policies of a station: one bundle a folder, and which of them is in use. Needs neither torch nor lerobot."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from agent.config import NAME_PATTERN
from agent.errors import BadInput, Refused
from agent.inference.bundle import Bundle, Manifest, open_bundle, read_manifest
from agent.inference.importer import sync

GONE: Final = ".gone-"


class InUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `policy.json` in the state folder holds."""

    policy: str


@dataclass(frozen=True)
class Entry:
    """A bundle as a list shows it: its manifest was read, its other files were not."""

    name: str
    in_use: bool
    bytes: int
    manifest: Manifest | None  # None: it cannot be read, and `problem` says why
    hash: str = ""
    problem: str = ""


class Library:
    """Bundles below one folder. Every change is on the disk when the call returns."""

    def __init__(self, policies: Path, in_use: Path) -> None:
        self._policies = policies
        self._in_use = in_use

    def names(self) -> list[str]:
        if not self._policies.is_dir():
            return []
        return sorted(path.name for path in self._policies.iterdir() if path.is_dir() and path.name[0] != ".")

    def list(self) -> list[Entry]:
        chosen = self.in_use()
        return [self._entry(name, name == chosen) for name in self.names()]

    def entry(self, name: str) -> Entry:
        """One of the list. Raises BadInput when there is no such policy."""
        return self._entry(self.find(name).name, name == self.in_use())

    def find(self, name: str | None = None) -> Path:
        """The folder of a policy; without a name, of the one in use. Raises BadInput when there is none."""
        wanted = name or self.in_use()
        known = ", ".join(self.names())
        hint = f"There are {known}." if known else "Import one with `so-agent policy import`."
        if wanted is None:
            raise BadInput("No policy is in use.", f"Name one, or choose one with `so-agent policy use`. {hint}")
        if not re.fullmatch(NAME_PATTERN, wanted):
            raise BadInput(
                f"{wanted!r} is not the name of a policy.", "Names have lower case letters, digits, - and _."
            )
        folder = self._policies / wanted
        if not folder.is_dir():
            raise BadInput(f"There is no policy {wanted}.", hint)
        return folder

    def open(self, name: str | None = None) -> Bundle:
        """A policy with every byte verified; without a name, the one in use. Raises BadInput."""
        folder = self.find(name)
        bundle = open_bundle(folder)
        if bundle.manifest.name != folder.name:
            raise BadInput(
                f"{folder} holds the policy {bundle.manifest.name}.",
                "Give the folder its own name, or import it again.",
            )
        return bundle

    def in_use(self) -> str | None:
        """The name of the policy in use. Raises BadInput when the file that says so cannot be read."""
        try:
            return msgspec.json.decode(self._in_use.read_bytes(), type=InUse).policy
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise BadInput(
                f"Cannot read {self._in_use}: {error}.", "Choose again with `so-agent policy use`."
            ) from error

    def use(self, name: str) -> Bundle:
        """Verify a policy, then make it the one that tasks run. Raises BadInput."""
        bundle = self.open(name)
        new = self._in_use.with_name(f".{self._in_use.name}.new")
        new.write_text(json.dumps({"policy": name}) + "\n", encoding="utf-8")
        sync(new)
        new.replace(self._in_use)
        sync(self._in_use.parent)
        return bundle

    def remove(self, name: str) -> None:
        """Raises BadInput when there is no such policy, Refused when it is in use."""
        folder = self.find(name)
        if self.in_use() == name:
            raise Refused(f"The policy {name} is in use.", "Choose another with `so-agent policy use` first.")
        gone = folder.with_name(f"{GONE}{name}-{os.getpid()}")
        folder.rename(gone)
        sync(gone.parent)
        shutil.rmtree(gone)

    def _entry(self, name: str, in_use: bool) -> Entry:
        folder = self._policies / name
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        try:
            manifest, digest = read_manifest(folder)
        except BadInput as error:
            return Entry(name, in_use, size, None, problem=error.message)
        return Entry(name, in_use, size, manifest, digest[:12])
