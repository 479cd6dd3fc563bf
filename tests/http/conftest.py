"""The HTTP surface as it runs: a real server before a real station, whose arm is the only part that is not there."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from agent.api.http.process import server_config
from agent.api.local import serve
from agent.clock import SystemClock
from agent.config import Http, StationConfig
from agent.modes import Mode
from agent.station import Station
from tests.daemon.fake_arm import FakeArm

CAMERA = {"type": "zmq", "width": 64, "height": 48}


@dataclass
class Bench:
    """`http` asks as somebody at this machine does."""

    station: Station
    arm: FakeArm
    settings: Http
    http: httpx.AsyncClient
    lease: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return str(self.http.base_url)

    async def take(self, http: httpx.AsyncClient | None = None) -> dict[str, str]:
        """Control, as the headers that carry it."""
        answer = await (http or self.http).post("/api/v1/lease")
        assert answer.status_code == 200, answer.text
        return {"X-Lease": answer.json()["token"]}

    async def mode(self, mode: Mode) -> None:
        async with asyncio.timeout(5):
            while self.station.machine.mode is not mode:  # noqa: ASYNC110 - another task's doing
                await asyncio.sleep(0.001)

    def as_token(self, token: str) -> httpx.AsyncClient:
        """Another client, from this machine but with a token."""
        return httpx.AsyncClient(base_url=self.url, headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
def http_settings() -> dict[str, Any]:
    """What is different about `http` in a module's tests."""
    return {}


@pytest.fixture
def config(make_config: Callable[..., StationConfig], http_settings: dict[str, Any]) -> StationConfig:
    cameras = {
        "front": CAMERA | {"view": "OBS_IMAGE_1"},
        "wrist": CAMERA | {"view": "OBS_IMAGE_2"},
    }
    patient = {"preview_width": 64, "lease_s": 5.0}  # a busy machine may not renew in time; see TestPage
    return make_config(http=patient | http_settings, cameras=cameras)


@pytest.fixture
def arm(config: StationConfig) -> Iterator[FakeArm]:
    with FakeArm(config.paths.arm_ctl) as arm:
        yield arm


@pytest.fixture
async def bench(config: StationConfig, arm: FakeArm) -> AsyncIterator[Bench]:
    assert config.http
    station = Station(config, SystemClock())
    watch = asyncio.create_task(station.leases.watch())
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(server_config(config, config.http))
    async with serve(config.paths.agent_socket, station.handle):
        await station.handle("release", {}, _nothing)
        serving = asyncio.create_task(server.serve([listener]))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=address, timeout=10) as http:
            yield Bench(station, arm, config.http, http)
        server.should_exit = True
        await serving
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    await station.background.settle()


async def _nothing(event: dict[str, Any]) -> None:
    pass


@pytest.fixture
def access(config: StationConfig) -> Path:
    return config.paths.access
