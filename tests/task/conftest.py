"""One station with a scripted policy, shared by the tests that leave it as they found it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.station.live import LiveStation

SETTINGS = {"starve_stop_s": 1.0, "hang_s": 2.0, "replan_s": 0.1}
"""Sooner than usual, so that tests are. On a busy machine pictures repeat; that is not what these tests are about."""


def scripted_station(folder: Path, **settings: object) -> LiveStation:
    """Not started yet."""
    live = LiveStation(folder, **settings)
    live.program = "tests.task.scripted"
    for name in ("script", "three-eyes"):
        (live.config.paths.policies / name).mkdir(parents=True)
    return live


@pytest.fixture(scope="package")
def shared_station() -> Iterator[LiveStation]:
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))
    live = scripted_station(folder, policy=SETTINGS, recording__max_repeat_pct=100)
    try:
        live.start_virtual("--seed", "1")
        live.start_agent()
        yield live
    finally:
        live.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def station(shared_station: LiveStation) -> LiveStation:
    """Idle and healthy."""
    shared_station.calm()
    return shared_station
