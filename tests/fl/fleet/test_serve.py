"""`so-agent fleet serve` keeps a fleet going through the death of its parts."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from agent.fl import fleet_runs
from agent.fl.fleet_report import report
from agent.fl.node import NodeState
from tests.fl.bench import ROOT, Member, Server, until
from tests.station.live import free_ports

pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(900)]


async def test_a_superlink_that_is_killed_is_back_with_its_stations_and_its_run(
    server: Server, member: Callable[..., Member]
) -> None:
    """The run goes on after its last round, and is asked for only once more."""
    kitchen = member("kitchen", server, apps=())
    kitchen.start()
    await kitchen.until(NodeState.ONLINE)
    await server.begin("long", min_available_nodes=1, num_server_rounds=2, fraction_evaluate=0.0)
    await until("the first round is done", lambda: len(server.rounds("long")) > 1, 400)
    os.kill(server.pid_of("superlink"), signal.SIGKILL)
    assert await server.over("long", 400) == "completed"
    request = fleet_runs.requests(server.fleet)[0]
    assert request.resumed == 1
    assert [each["round"] for each in server.rounds("long")] == [0, 1, 2]
    found = report(server.fleet)
    assert found["runs"][0]["state"] == "completed"
    assert [each["station"] for each in found["stations"]] == ["kitchen"]


async def test_a_gate_that_is_killed_is_back_and_no_station_notices(
    server: Server, member: Callable[..., Member]
) -> None:
    kitchen = member("kitchen", server)
    kitchen.start()
    await kitchen.until(NodeState.ONLINE)
    before = server.pid_of("gate")
    os.kill(before, signal.SIGKILL)
    await until("another gate", lambda: server.pid_of("gate") != before)
    output = await server.be_patient("after", num_server_rounds=1, seconds=0.5)
    await until("a round is done", output.exists)
    assert kitchen.federation.node.messages == 1


async def test_a_fleet_is_served_once(server: Server) -> None:
    def serve(address: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "agent.cli", "fleet", "serve", "--fleet", str(server.fleet.folder)]
        done = subprocess.run([*command, "--bind", address], capture_output=True, text=True, cwd=ROOT, timeout=90)
        return done.returncode, done.stderr

    code, problem = await asyncio.to_thread(serve, server.address)
    assert code == 2
    assert "Cannot listen on" in problem
    code, problem = await asyncio.to_thread(serve, f"127.0.0.1:{free_ports(1)[0]}")
    assert code == 3
    assert "is being served already" in problem
    assert server.fleet.serving().address == server.address
