"""The output of a SuperNode is read to its end, whatever an app prints there. With a program that stands in for it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from agent.clock import SystemClock
from agent.config import StationConfig
from agent.fl.membership import Membership
from agent.fl.room import Room
from agent.fl.supernode import LINE_BYTES, Folders, SuperNode


async def test_a_line_without_end_does_not_stop_what_comes_after_it(
    make_config: Callable[..., StationConfig], tmp_path: Path
) -> None:
    membership = Membership(make_config(), SystemClock())
    folders = Folders(membership.folder)
    for folder in (folders.programs, folders.work):
        folder.mkdir(parents=True)
    program = folders.programs / "flower-supernode"
    program.write_text(f"#!/bin/sh\nhead -c {20 * LINE_BYTES} /dev/zero\necho\necho 'INFO :      SuperNode ID: 7'\n")
    program.chmod(0o755)
    supernode = SuperNode(folders, Room("test", tmp_path, 10**9, folders.tenant), lambda: None)
    await supernode.start("127.0.0.1:1", membership)
    await asyncio.wait_for(supernode.wait(), 20)
    assert await supernode.end()
    assert supernode.code == 0
    assert supernode.diary.node_id == 7
