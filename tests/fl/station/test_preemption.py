"""The arm is wanted while a trainer works: it stands still at once, the round gets what there is, the arm is free."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.fl.node import NodeState
from agent.fl.room import Room
from tests.fl.bench import Member, Server, notes, until

pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(900)]

AT_ONCE_S = 0.05
"""Two writes, on a busy machine. The station's own part of starting teleop takes as long."""


async def working(member: Member, server: Server, name: str, **config: object) -> Path:
    """A station in the middle of a round, alone in its fleet."""
    member.start()
    await member.until(NodeState.ONLINE)
    output = await server.be_patient(name, **({"num_server_rounds": 1, "seconds": 60.0} | config))
    await member.until(NodeState.WORKING)
    await until("the trainer waits", lambda: "Start `flwr-clientapp`" in member.log())
    return output


def stands_still(room: Room) -> bool:
    """Whether the kernel has stopped the trainer."""
    if room.trainer:
        return "frozen 1" in (room.trainer / "cgroup.events").read_text()
    pid = room.tenant()
    return pid is not None and Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T"


async def test_a_trainer_stands_still_at_once_and_its_partial_work_counts(
    shared_server: Server, member: Callable[..., Member]
) -> None:
    kitchen = member("kitchen", shared_server)
    output = await working(kitchen, shared_server, "partial")
    kitchen.desk.busy = "the station is in mode teleop"
    began_s = time.monotonic()
    kitchen.federation.yield_now("teleop.start was asked for")
    assert time.monotonic() - began_s < AT_ONCE_S
    await until("it stands still", lambda: stands_still(kitchen.federation.node.room), 1.0)
    assert kitchen.state is NodeState.WORKING or kitchen.state is NodeState.FINISHING
    await kitchen.until(NodeState.OFF)
    assert "the arm is needed" in kitchen.reason
    await until("the server has its answer", lambda: notes(output))
    note = notes(output)[0]
    assert note["errors"] == []
    assert note["replies"][0]["preempted"] == 1.0
    assert note["replies"][0]["num-examples"] >= 1
    assert kitchen.federation.node.room.pids() == []
    kitchen.desk.busy = None  # the arm is free again: back it comes, and not deaf
    await kitchen.until(NodeState.ONLINE)
    again = await shared_server.be_patient("again", num_server_rounds=1, seconds=0.5)
    await until("the next round is done", lambda: notes(again))
    assert notes(again)[0]["errors"] == []


async def test_a_trainer_that_does_not_listen_is_told_to_reply_that_it_was_busy(
    shared_server: Server, member: Callable[..., Member]
) -> None:
    kitchen = member("deaf", shared_server, reply_within_s=1.0)
    output = await working(kitchen, shared_server, "busy", manners="bad")
    kitchen.desk.busy = "the station is in mode teleop"
    kitchen.federation.yield_now("teleop.start was asked for")
    await kitchen.until(NodeState.OFF)
    await until("the server has its answer", lambda: notes(output))
    assert notes(output)[0]["errors"] == [[1001, "the arm is needed"]]


async def test_a_trainer_that_resists_is_ended_and_the_round_goes_on(
    shared_server: Server, member: Callable[..., Member]
) -> None:
    kitchen = member("stubborn", shared_server, reply_within_s=0.5)
    output = await working(kitchen, shared_server, "stubborn", manners="stubborn")
    kitchen.desk.busy = "the station is in mode teleop"
    kitchen.federation.yield_now("teleop.start was asked for")
    await kitchen.until(NodeState.OFF)
    assert kitchen.federation.node.room.pids() == []
    await until("the server's round is over", lambda: notes(output))
    assert len(notes(output)[0]["errors"]) == 1


async def test_without_memory_to_spare_a_trainer_gets_no_time(
    shared_server: Server, member: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that is about to be loaded needs what the trainer has."""
    kitchen = member("small", shared_server)
    output = await working(kitchen, shared_server, "memory", manners="bad")
    monkeypatch.setattr("agent.fl.federation._free_memory", lambda: 10**7)
    kitchen.desk.busy = "the station is in mode executing"
    kitchen.federation.yield_now("task.start was asked for")
    await kitchen.until(NodeState.OFF)
    await until("the server has its answer", lambda: notes(output))
    assert notes(output)[0]["errors"] == [[1001, "the arm is needed"]]


async def test_wanting_the_arm_of_a_station_that_waits_for_a_round_ends_its_supernode(
    shared_server: Server, member: Callable[..., Member]
) -> None:
    kitchen = member("waiting", shared_server)
    kitchen.start()
    await kitchen.until(NodeState.ONLINE)
    kitchen.desk.busy = "the station is in mode teleop"
    kitchen.federation.yield_now("teleop.start was asked for")
    await kitchen.until(NodeState.OFF)
    assert kitchen.federation.node.room.pids() == []
