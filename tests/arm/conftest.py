"""Fixtures for the arm process: forked from a real nursery, on virtual arms at the wire."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from agent.config import StationConfig
from tests.arm.bench import Bench, running
from tests.nursery import Nursery


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
