"""What goes wrong between station and fleet. What takes minutes is in `python -m tests.fl.faults`."""

import os
import signal
from collections.abc import Callable

import pytest

from agent.fl.node import NodeState
from tests.fl.bench import Member, Server, notes, until

pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(900)]


async def test_a_supernode_that_is_killed_is_back_by_itself(
    shared_server: Server, member: Callable[..., Member]
) -> None:
    kitchen = member("kitchen", shared_server)
    kitchen.start()
    await kitchen.until(NodeState.ONLINE)
    node = kitchen.federation.node
    for pid in node.room.pids():
        os.kill(pid, signal.SIGKILL)
    await kitchen.until(NodeState.WAITING)
    await kitchen.until(NodeState.ONLINE)
    output = await shared_server.be_patient("after", num_server_rounds=1, seconds=0.5)
    await until("a round is done", lambda: notes(output))
    assert notes(output)[0]["errors"] == []


async def test_a_full_disk_is_said_and_stops_nothing_else(shared_server: Server, member: Callable[..., Member]) -> None:
    kitchen = member("full", shared_server)
    folders = kitchen.federation.node.folders
    folders.home.mkdir(parents=True, exist_ok=True)
    folders.log.symlink_to("/dev/full")  # every write says that the disk is full
    kitchen.start()
    await kitchen.until(NodeState.ONLINE)
    output = await shared_server.be_patient("full", num_server_rounds=1, seconds=0.5)
    await until("a round is done", lambda: notes(output))
    assert notes(output)[0]["errors"] == []


async def test_with_too_little_disk_left_a_station_leaves(
    shared_server: Server, member: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen = member("little", shared_server)
    kitchen.start()
    await kitchen.until(NodeState.ONLINE)
    monkeypatch.setattr("agent.fl.federation._free_disk", lambda folder: 10**7)
    await kitchen.until(NodeState.OFF)
    assert "GB of disk are free" in kitchen.reason
