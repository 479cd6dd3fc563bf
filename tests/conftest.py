"""Fixtures that every part of the suite may use."""

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import StationConfig
from tests.nursery import ARM, CAMERA, RECORDER, Nursery

HARDWARE_PRIORITY = 20  # above the arm process's 10


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder with a short path: Unix sockets allow 107 bytes, and pytest's own folders are long."""
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Has lerobot imported; arms, recorders and cameras are forked from it."""
    made = Nursery(tmp_path_factory.mktemp("nursery") / "children.log", ARM, RECORDER, CAMERA)
    yield made
    made.close()


@pytest.fixture
def hardware() -> Iterator[None]:
    """Real servos answer in time on a busy host; where permitted, so do the virtual ones in this process.

    All threads, because whichever holds the interpreter's lock holds up the servos.
    """

    def schedule(policy: int, priority: int) -> None:
        for thread in threading.enumerate():
            with contextlib.suppress(OSError):  # not permitted, or the thread has just ended
                os.sched_setscheduler(thread.native_id or 0, policy, os.sched_param(priority))

    schedule(os.SCHED_FIFO, HARDWARE_PRIORITY)  # threads and processes started from here on inherit it
    yield
    schedule(os.SCHED_OTHER, 0)


@pytest.fixture(autouse=True)
def _no_real_time_is_left_behind() -> Iterator[None]:
    """A browser that a later test starts would inherit it, and nothing else would run any more."""
    before = os.sched_getscheduler(0)
    yield
    assert os.sched_getscheduler(0) == before, "use the fixture `hardware`, which puts it back"


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
