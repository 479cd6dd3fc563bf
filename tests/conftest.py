"""Fixtures that every part of the suite may use."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import StationConfig
from tests.nursery import CAMERA, RECORDER, Nursery


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder with a short path: Unix sockets allow 107 bytes, and pytest's own folders are long."""
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Has lerobot imported; recorders and cameras are forked from it."""
    made = Nursery(tmp_path_factory.mktemp("nursery") / "children.log", RECORDER, CAMERA)
    yield made
    made.close()


@pytest.fixture
def make_config(short_dir: Path) -> Any:
    """Makes a station configuration below `short_dir`; keyword arguments override top-level fields."""

    def make(**overrides: Any) -> StationConfig:
        values: dict[str, Any] = {
            "station": "test",
            "state_dir": str(short_dir / "state"),
            "robot": {
                "model": "so101",
                "follower": {"port": str(short_dir / "follower"), "id": "follower"},
                "leader": {"port": str(short_dir / "leader"), "id": "leader"},
                "calibration_dir": str(short_dir / "calibration"),
            },
            "logging": {"level": "debug", "format": "json"},
        }
        return StationConfig(**(values | overrides))

    return make
