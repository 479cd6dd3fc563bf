"""Whatever is sent to whatever the API offers: never a 500, never an answer that is not described, never motion."""

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import tempfile
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
from tests.daemon.fake_arm import FakeArm
from tests.http.conftest import CAMERA
from tests.http.recorder import Recorder, record

EXAMPLES = int(os.environ.get("EXAMPLES", "15"))
"""Of each operation and kind. `make test-api` sends ten times as many."""

PATIENCE_S = 60.0
"""An answer that comes late on a busy machine is not what is looked for here."""

ENDLESS = ("live", "cameras.stream")
"""Streams, which test_live.py and test_cameras.py read."""


@dataclass
class Served:
    url: str
    arm: FakeArm
    station: Station
    reached: set[tuple[str, int]]  # every address that anybody here connected to


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Station and server on a loop of their own: these tests are not asynchronous."""
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))  # a short path, for sockets
    config = StationConfig(
        station="test",
        state_dir=str(folder / "state"),  # type: ignore[arg-type]
        run_dir=str(folder / "run"),  # type: ignore[arg-type]
        robot={  # type: ignore[arg-type]
            "model": "so101",
            "follower": {"port": "/dev/none", "id": "follower"},
            "leader": {"port": "/dev/none2", "id": "leader"},
            "calibration_dir": str(folder),
        },
        cameras={"front": CAMERA | {"view": "OBS_IMAGE_1"}},  # type: ignore[dict-item]
        http={"lease_s": 0.3},  # type: ignore[arg-type]
    )
    record(config)
    with Recorder(config), FakeArm(config.paths.arm_ctl) as arm:
        station = Station(config, SystemClock())
        listener = socket.create_server(("127.0.0.1", 0))
        assert config.http
        server = uvicorn.Server(server_config(config, config.http))
        reached: set[tuple[str, int]] = set()
        sys.addaudithook(lambda event, args: _note(reached, event, args))  # Python has no way to take it off

        async def run() -> None:
            watch = asyncio.create_task(station.leases.watch())
            async with serve(config.paths.agent_socket, station.handle):
                await station.handle("release", {}, lambda _: asyncio.sleep(0))
                await server.serve([listener])
            watch.cancel()

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", arm, station, reached)
        server.should_exit = True
        thread.join(30)
    shutil.rmtree(folder)


def _note(reached: set[tuple[str, int]], event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(address := args[1], tuple):
        reached.add(address[:2])


@pytest.fixture(scope="module")
def api(served: Served) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{served.url}/api/v1/openapi.json")


@pytest.mark.slow
@pytest.mark.timeout(300 + 10 * EXAMPLES)
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
            response = case.call(base_url=served.url, timeout=PATIENCE_S)
            assert response.status_code != 500, response.text
            case.validate_response(response, checks=checks)
            moved = set(served.arm.drives[before:])
            assert moved <= {Drive.HOLD}, f"{case.method} {case.path} moved the arm without control"

        # Some take nothing that could be wrong.
        with contextlib.suppress(hypothesis.errors.Unsatisfiable, unittest.SkipTest, pytest.skip.Exception):
            answer()


def test_nothing_that_is_sent_makes_the_station_fetch_something(served: Served) -> None:
    """After all of the above; client and server are the same process here."""
    httpx.post(f"{served.url}/api/v1/estop", json={"cause": "http://192.0.2.7/x"})
    httpx.post(f"{served.url}/api/v1/policies/http:%2F%2F192.0.2.7%2Fx/use")
    host, _, port = served.url.removeprefix("http://").partition(":")
    assert served.reached == {(host, int(port))}


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
