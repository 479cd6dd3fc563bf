"""Whole stations for the tests in this folder. One is shared by the tests that leave it as they found it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.station.live import LiveStation


@pytest.fixture(scope="package")
def shared_station() -> Iterator[LiveStation]:
    """A running station with stamped cameras, shared: starting one takes ten seconds."""
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))
    live = LiveStation(folder)
    try:
        live.start_virtual("--stamp", "--seed", "1")
        live.start_agent()
        yield live
    finally:
        live.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def station(shared_station: LiveStation) -> LiveStation:
    """The shared station, idle and healthy."""
    shared_station.calm()
    return shared_station


@pytest.fixture
def own_station(short_dir: Path) -> Iterator[LiveStation]:
    """A station for one test alone, not started yet: for tests that kill or misconfigure it."""
    live = LiveStation(short_dir)
    yield live
    live.close()
