"""The policy that a run starts from: every station must have it already, byte for byte; only adapters travel."""

import os
from pathlib import Path
from typing import Final

from agent.errors import BadInput
from agent.inference.bundle import Bundle, open_bundle, read_manifest

SHIPPED: Final = Path(__file__).resolve().parents[2] / "policies"
"""Of the repository; an installed package has none."""

FLEET: Final = "SO_AGENT_FLEET_DIR"
"""Environment variable of the server: where it keeps rounds, and in `policies/` the bases that it may begin with."""


def fleet_folder() -> Path:
    return Path(os.environ.get(FLEET) or Path.home() / ".local" / "state" / "so-agent" / "fleet")


def find_base(wish: str) -> Bundle:
    """By a folder, or by name among the fleet's policies and those shipped with the repository. Raises BadInput."""
    places = [Path(wish)] if os.path.isabs(wish) else [fleet_folder() / "policies" / wish, SHIPPED / wish]
    for place in places:
        if place.is_dir():
            return open_bundle(place)
    raise BadInput(
        f"There is no policy {wish} to begin with.", f"Give policy= a folder, or put it into {places[0].parent}."
    )


def find_by_hash(policies: Path, digest: str) -> Bundle | None:
    """Among the bundles of a folder, whatever they are called here; None when it is not there. Raises BadInput when it
    is, but was changed."""
    for folder in sorted(policies.iterdir()) if policies.is_dir() else []:
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        try:
            _, found = read_manifest(folder)
        except BadInput:
            continue  # another one, which cannot be read: not what is looked for
        if found[:12] == digest:
            return open_bundle(folder)
    return None
