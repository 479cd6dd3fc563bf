"""Three stations, a SuperLink with TLS and keys, three rounds: all of it real, on loopback."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.fl.adapter import open_adapter
from agent.fl.node import NodeState
from agent.inference.library import Library
from tests.fl.bench import Member, Server, until

NAMES = ("kitchen", "attic", "workshop")


def promoted(member: Member) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = member.federation.promotion.status()["candidates"]
    return found


@pytest.mark.deployment
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_three_stations_make_one_adapter_in_three_rounds(server: Server, member: Callable[..., Member]) -> None:
    members = [member(name, server, apps=()) for name in NAMES]
    paths = members[0].config.paths
    Library(paths.policies, paths.policy_in_use).use("tiny")
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
    await asyncio.gather(*(each.stop() for each in members[1:]))
    await until("the candidate is tried", lambda: promoted(members[0]))
    tried = promoted(members[0])[-1]
    assert tried["rows"] > 0
    assert tried["outcome"] == ("promoted" if tried["after"] <= tried["before"] * 1.02 else "worse")
    assert members[0].desk.told
