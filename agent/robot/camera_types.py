"""Which camera types there are, without importing lerobot: for checking a configuration in milliseconds."""

import importlib.metadata
from typing import Final

from agent.errors import BadInput

BUILT_IN: Final = frozenset({"opencv", "zmq", "intelrealsense", "reachy2_camera"})
"""What lerobot 0.6.1 registers itself; a test compares it with the registry."""

PLUGIN_PREFIX: Final = "lerobot_camera_"
"""lerobot imports installed distributions of this name. With underscores: it matches the name as it is written."""


def known_types() -> set[str]:
    """Built-in types and those of installed plug-ins (by their distributions' names)."""
    names = {str(found.metadata["Name"]) for found in importlib.metadata.distributions()}
    return set(BUILT_IN) | {name.removeprefix(PLUGIN_PREFIX) for name in names if name.startswith(PLUGIN_PREFIX)}


def is_known(kind: str) -> bool:
    """Whether something installed provides this type. What is installed is looked at only when it is not built in:
    that takes a tenth of a second, and the arm waits for it."""
    return kind in BUILT_IN or kind in known_types()


def check_type(camera: str, kind: str) -> None:
    """Raises BadInput, listing what is allowed, for a type that nothing installed provides."""
    if not is_known(kind):
        raise unknown_type(camera, kind, known_types())


def unknown_type(camera: str, kind: str, known: set[str]) -> BadInput:
    return BadInput(
        f"cameras.{camera}.type: found {kind!r}; allowed are {', '.join(sorted(known))}.",
        f"Correct it, or install the plug-in that provides it (a distribution named {PLUGIN_PREFIX}*).",
    )
