"""Whatever is sent to whatever the API offers: never a 500, never an answer that is not described, never motion."""

import asyncio
import contextlib
import socket
import threading
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
import uvicorn
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from schemathesis.schemas import BaseSchema

from agent.api.http.process import server_config
from agent.api.local import serve
from agent.api.schemas import VERBS, Access, Status
from agent.clock import SystemClock
from agent.config import StationConfig
from agent.messages import Drive
from agent.station import Station
from tests.daemon.fake_arm import FakeArm, fake_arm
from tests.http.conftest import CAMERA

pytestmark = pytest.mark.fuzz

EXAMPLES = 15
ENDLESS = ("live", "cameras.stream")
"""Streams, which test_live.py and test_cameras.py read."""


@dataclass
class Served:
    url: str
    arm: FakeArm
    station: Station


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Station and server on a loop of their own: these tests are not asynchronous."""
    folder = Path("/tmp") / tmp_path_factory.mktemp("so").name  # a short path, for sockets
    config = StationConfig(
        station="test",
        state_dir=str(folder / "state"),  # type: ignore[arg-type]
        run_dir=str(tmp_path_factory.mktemp("r")),  # type: ignore[arg-type]
        robot={  # type: ignore[arg-type]
            "model": "so101",
            "follower": {"port": "/dev/none", "id": "follower"},
            "leader": {"port": "/dev/none2", "id": "leader"},
            "calibration_dir": str(folder),
        },
        cameras={"front": CAMERA | {"view": "OBS_IMAGE_1"}},  # type: ignore[dict-item]
        http={"lease_s": 0.3},  # type: ignore[arg-type]
    )
    with fake_arm(config.paths.arm_ctl) as arm:
        station = Station(config, SystemClock())
        listener = socket.create_server(("127.0.0.1", 0))
        assert config.http
        server = uvicorn.Server(server_config(config, config.http))

        async def run() -> None:
            watch = asyncio.create_task(station.leases.watch())
            async with serve(config.paths.agent_socket, station.handle):
                await station.handle("release", {}, lambda _: asyncio.sleep(0))
                await server.serve([listener])
            watch.cancel()

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", arm, station)
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def api(served: Served) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{served.url}/api/v1/openapi.json")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_whatever_is_sent_is_answered_as_described(mode: GenerationMode, api: BaseSchema, served: Served) -> None:
    """What the description allows, and what it does not."""
    names = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
    checks = [CHECKS.get_one(name) for name in names]
    for found in api.get_all_operations():
        operation = found.ok()
        if operation.definition.raw["operationId"] in ENDLESS:
            continue

        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[hypothesis.HealthCheck.filter_too_much, hypothesis.HealthCheck.too_slow],
        )
        @hypothesis.given(case=operation.as_strategy(mode))
        def answer(case: Any) -> None:
            before = len(served.arm.drives)
            response = case.call(base_url=served.url)
            assert response.status_code != 500, response.text
            case.validate_response(response, checks=checks)
            moved = set(served.arm.drives[before:])
            assert moved <= {Drive.HOLD}, f"{case.method} {case.path} moved the arm without control"

        # Some take nothing that could be wrong.
        with contextlib.suppress(hypothesis.errors.Unsatisfiable, unittest.SkipTest, pytest.skip.Exception):
            answer()


def test_every_verb_has_an_address(api: BaseSchema) -> None:
    offered = {operation.ok().definition.raw["operationId"] for operation in api.get_all_operations()}
    assert offered >= set(VERBS)


def test_what_changes_something_says_what_it_needs() -> None:
    """A new verb is not offered to everybody by accident."""
    everybody = {name for name, verb in VERBS.items() if verb.access in (Access.LOOK, Access.STOP)}
    assert everybody == {
        "status", "estop", "teleop.stop", "task.stop", "record.stop", "episodes.list", "episodes.show",
    }  # fmt: skip


def test_the_status_is_as_described(served: Served) -> None:
    Status.model_validate_json(httpx.get(f"{served.url}/api/v1/status").content)
