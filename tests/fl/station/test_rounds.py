"""Three stations, a SuperLink with TLS and keys, three rounds: all of it real, on loopback."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.fl.adapter import open_adapter
from agent.fl.node import NodeState
from tests.fl.bench import Member, Server
from tests.station.live import free_ports

NAMES = ("kitchen", "attic", "workshop")


@pytest.fixture
async def server(short_dir: Path, tiny_policy: Path) -> AsyncIterator[Server]:
    server = Server(short_dir, free_ports(1)[0])
    shutil.copytree(tiny_policy, server.fleet.policies / "tiny")
    server.start()
    await server.ready()
    yield server
    server.stop()


@pytest.fixture
async def members(
    server: Server, short_dir: Path, tiny_policy: Path, drawn_episodes: Path
) -> AsyncIterator[list[Member]]:
    """Enrolled, equipped and registered; not started."""
    found = []
    for name in NAMES:
        member = Member(short_dir, name)
        member.equip(tiny_policy, drawn_episodes)
        server.fleet.add_station(name, member.enroll(server))
        found.append(member)
    yield found
    await asyncio.gather(*(member.stop() for member in found))


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_three_stations_make_one_adapter_in_three_rounds(server: Server, members: list[Member]) -> None:
    for member in members:
        member.start()
    for member in members:
        await member.until(NodeState.ONLINE)
    await server.begin("first", min_available_nodes=3)
    assert await server.over("first", 300) == "completed"
    done = server.rounds("first")
    assert [each["round"] for each in done] == [0, 1, 2, 3]
    assert [each["used"] for each in done[1:]] == [3, 3, 3]
    final = open_adapter(Path(done[-1]["adapter"]))
    for member in members:
        kept = open_adapter(member.federation.node.folders.candidates / "first")
        assert kept.manifest.round == 3
        assert kept.arrays().keys() == final.arrays().keys()
