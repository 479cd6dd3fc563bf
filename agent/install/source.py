"""The files that are put into place: kept in the folder `systemd/` of the repository, or of an installed package."""

import sys
from pathlib import Path

import agent
from agent.errors import BadInput


def text(name: str) -> str:
    """The file called `name`. Raises BadInput where the package was installed without them."""
    places = (
        Path(agent.__file__).resolve().parents[1] / "systemd",
        Path(sys.prefix) / "share" / "so-agent" / "systemd",
    )
    for place in places:
        if (place / name).is_file():
            return (place / name).read_text(encoding="utf-8")
    raise BadInput(
        f"The file {name} did not come with this installation.",
        f"Looked in {' and '.join(map(str, places))}. Install from the repository.",
    )
