"""Three stations, a SuperLink with TLS and keys, three rounds: all of it real, on loopback."""

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.fl.adapter import open_adapter
from agent.fl.node import NodeState
from tests.fl.bench import Member, Server

NAMES = ("kitchen", "attic", "workshop")


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_three_stations_make_one_adapter_in_three_rounds(server: Server, member: Callable[..., Member]) -> None:
    members = [member(name, server, apps=(), keep_warm=True) for name in NAMES]
    for each in members:
        each.start()
    for each in members:
        await each.until(NodeState.ONLINE)
    await server.begin("first", min_available_nodes=3, fraction_evaluate=0.0)
    assert await server.over("first", 800) == "completed"
    done = server.rounds("first")
    assert [note["round"] for note in done] == [0, 1, 2, 3]
    assert [note["used"] for note in done[1:]] == [3, 3, 3]
    final = open_adapter(Path(done[-1]["adapter"]))
    for each in members:
        kept = open_adapter(each.federation.node.folders.candidates / "first")
        assert kept.manifest.round == 3
        assert kept.arrays().keys() == final.arrays().keys()
