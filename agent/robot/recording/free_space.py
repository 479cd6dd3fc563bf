"""How much disk is left, and when that is too little to record."""

import shutil
from pathlib import Path
from typing import Final

from agent.config import StationConfig
from agent.errors import Refused

GB: Final = 1_000_000_000

CRITICAL_SHARE: Final = 0.25
"""Of `min_free_gb`: below it the running episode is finished. Between the two an episode has room to end."""


def free_bytes(config: StationConfig) -> int:
    """Free bytes for this user where the station keeps its data."""
    folder: Path = config.paths.journal
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require(config: StationConfig) -> None:
    """Raises Refused when a new episode must not start."""
    free, needed = free_bytes(config) / GB, config.recording.min_free_gb
    if free < needed:
        raise Refused(
            f"The disk of {config.paths.state} has {free:.2f} GB free; {needed:g} GB are needed to record.",
            "Free some space, or lower recording.min_free_gb.",
        )


def critical(config: StationConfig) -> bool:
    """True when the running episode must be finished now."""
    return free_bytes(config) < config.recording.min_free_gb * GB * CRITICAL_SHARE
