"""Fixtures for the arm process: forked from a real nursery, on virtual arms at the wire."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from agent.config import StationConfig
from tests.arm.bench import Bench, Nursery, running

HARDWARE_PRIORITY = 20  # above the arm process's 10


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Imports lerobot once; every arm process of the session is forked from it."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def hardware() -> Iterator[None]:
    """Real servos answer in time on a busy host; where permitted, so do the virtual ones in this process.

    All threads, because whichever holds the interpreter's lock holds up the servos.
    """

    def schedule(policy: int, priority: int) -> None:
        for thread in threading.enumerate():
            with contextlib.suppress(OSError):  # not permitted, or the thread has just ended
                os.sched_setscheduler(thread.native_id or 0, policy, os.sched_param(priority))

    schedule(os.SCHED_FIFO, HARDWARE_PRIORITY)  # threads started from here on inherit it
    yield
    schedule(os.SCHED_OTHER, 0)


@pytest.fixture
def make_bench(
    make_config: Callable[..., StationConfig], nursery: Nursery, hardware: None
) -> Iterator[Callable[..., Bench]]:
    """Makes a bench; keyword arguments go into the sections `robot` and `safety` of the configuration."""
    with ExitStack() as stack:

        def make(robot: dict[str, Any] | None = None, safety: dict[str, Any] | None = None) -> Bench:
            plain = make_config()
            values = plain.model_dump(mode="json")
            config = make_config(
                robot=values["robot"] | (robot or {}),
                safety=values["safety"] | (safety or {}),
                recording={"fps": 10},
            )
            return stack.enter_context(running(config, nursery))

        yield make


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """A bench with the default settings and no process yet."""
    return make_bench()
