"""A broker and a surface before a daemon that is not one, for tests that need no arm."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.api.mqtt.commands import Gate
from agent.api.mqtt.home_assistant import announcement
from agent.api.mqtt.link import StationLink
from agent.api.mqtt.seen import Seen
from agent.api.mqtt.surface import Surface
from agent.api.mqtt.timekeeping import Timekeeping
from agent.clock import SystemClock
from agent.config import StationConfig
from tests.mqtt.broker import Broker, running
from tests.mqtt.daemon import FakeDaemon


@pytest.fixture
def broker(short_dir: Path) -> Iterator[Broker]:
    with running(Broker(short_dir)) as started:
        yield started


@dataclass
class Bench:
    config: StationConfig
    daemon: FakeDaemon
    surface: Surface
    task: asyncio.Task[None]


@contextlib.asynccontextmanager
async def surfaced(
    config: StationConfig, daemon: FakeDaemon, timekeeping: Timekeeping | None = None
) -> AsyncIterator[Bench]:
    """The surface of `config` before `daemon`, until the context closes."""
    assert config.mqtt
    clock = SystemClock()
    keeping = timekeeping or Timekeeping(trusted=True)
    keeping.look()
    link = StationLink(config.paths, clock)
    gate = Gate(clock, keeping, Seen(config.paths.mqtt_seen))
    about = announcement(config) if config.mqtt.home_assistant else None
    surface = Surface(config.station, config.mqtt, link, gate, clock, about)
    async with daemon.serve(config.paths.agent_socket):
        task = asyncio.create_task(surface.run())
        try:
            yield Bench(config, daemon, surface, task)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # anything else is what the test should fail with
                await task


@pytest.fixture
async def bench(broker: Broker, make_config: Callable[..., StationConfig]) -> AsyncIterator[Bench]:
    config = make_config(mqtt={"host": "127.0.0.1", "port": broker.port})
    async with surfaced(config, FakeDaemon()) as made:
        await asyncio.wait_for(made.surface.connected.wait(), 10)
        yield made


def settings(broker: Broker, **more: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": broker.port, **more}
