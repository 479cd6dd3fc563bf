"""How a session ends: what was sent is fetched before the station says goodbye. With a real process in its place."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.clock import nanoseconds
from agent.fl.leaving import FETCHED_S, Leaving
from agent.fl.room import Room
from agent.fl.supernode import Folders, SuperNode

NOW_NS = nanoseconds(1000.0)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room("test", tmp_path, 10**9, tmp_path / "trainer.json")


@pytest.fixture
async def supernode(tmp_path: Path, room: Room) -> AsyncIterator[SuperNode]:
    made = SuperNode(Folders(tmp_path), room, lambda: None)
    made._process = await asyncio.create_subprocess_exec("sleep", "60")
    yield made
    if made._process.returncode is None:
        made._process.kill()
    await made._process.wait()


def state(supernode: SuperNode) -> str:
    return Path(f"/proc/{supernode.pid}/stat").read_text().rpartition(") ")[2][0]


async def stands_still(supernode: SuperNode) -> bool:
    for _ in range(200):
        if state(supernode) == "T":
            return True
        await asyncio.sleep(0.01)
    return False


async def test_after_a_reply_it_stands_still_until_that_was_fetched(supernode: SuperNode, room: Room) -> None:
    leaving = Leaving("the arm is needed", NOW_NS + nanoseconds(30.0))
    sent_ns = NOW_NS
    leaving.step(supernode, room, sent_ns, NOW_NS + nanoseconds(0.1))
    assert await stands_still(supernode)
    leaving.step(supernode, room, sent_ns, NOW_NS + nanoseconds(FETCHED_S - 0.1))
    assert leaving.stopped_ns is None
    leaving.step(supernode, room, sent_ns, NOW_NS + nanoseconds(FETCHED_S + 0.1))
    await asyncio.wait_for(supernode.wait(), 10)  # also one that stands still hears that it shall go
    assert supernode.code == -signal.SIGTERM


@pytest.mark.parametrize("ago_s", [None, 60.0])
async def test_with_nothing_to_be_fetched_it_goes_at_once(
    supernode: SuperNode, room: Room, ago_s: float | None
) -> None:
    sent_ns = None if ago_s is None else NOW_NS - nanoseconds(ago_s)
    Leaving("paused", NOW_NS + nanoseconds(30.0)).step(supernode, room, sent_ns, NOW_NS)
    await asyncio.wait_for(supernode.wait(), 10)
    assert supernode.code == -signal.SIGTERM


async def test_while_a_reply_is_due_it_stays(supernode: SuperNode, room: Room) -> None:
    supernode.diary.busy = True
    leaving = Leaving("the arm is needed", NOW_NS + nanoseconds(30.0))
    leaving.step(supernode, room, None, NOW_NS + nanoseconds(29.0))
    assert (leaving.asked_ns, leaving.stopped_ns) == (None, None)
    leaving.step(supernode, room, None, NOW_NS + nanoseconds(31.0))
    assert leaving.asked_ns is not None  # the trainer is told to reply that it was busy
    leaving.step(supernode, room, None, NOW_NS + nanoseconds(42.0))
    assert leaving.stopped_ns is not None
