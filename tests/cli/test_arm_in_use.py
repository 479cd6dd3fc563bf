"""A command that keeps the computer busy learns at once that somebody uses the arm."""

import asyncio
import queue
from pathlib import Path
from typing import Any

import pytest

from agent.api.local import serve
from agent.cli.arm_in_use import ArmInUse, in_use
from agent.clock import SystemClock
from agent.modes import Mode
from agent.requests import Progress
from agent.station import Station


async def heard(told: "queue.Queue[str | None]") -> str | None:
    return await asyncio.to_thread(told.get, timeout=10)


async def test_it_is_told_when_the_arm_is_used_and_when_it_rests(make_config: Any) -> None:
    station = Station(make_config(), SystemClock())
    station.machine.to(Mode.IDLE, "parked")
    told: queue.Queue[str | None] = queue.Queue()
    watch = ArmInUse(station.paths.agent_socket, told.put)
    looks = 0

    async def handle(verb: str, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        nonlocal looks
        looks += verb == "status"
        return await station.handle(verb, args, progress)

    async with serve(station.paths.agent_socket, handle):
        watch.start()
        station.machine.to(Mode.ALIGNING, "teleop was started")
        assert await heard(told) == "the arm is in mode aligning"
        station.machine.to(Mode.TELEOP, "aligned")
        assert await heard(told) == "the arm is in mode teleop"
        station.machine.to(Mode.HOLD, "hold was asked for")
        assert await heard(told) is None
        station.machine.to(Mode.EXECUTING, "a task")
        assert await heard(told) == "the arm is in mode executing"
        async with asyncio.timeout(10):
            while looks < 6:  # noqa: ASYNC110 - one at first, and one for each event; then it listens again
                await asyncio.sleep(0.01)
    assert await heard(told) is None, "no agent uses the arm"
    watch.close()


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({"mode": "idle", "loading": None}, None),
        ({"mode": "idle", "loading": "reach"}, "a task is about to begin, with the policy reach"),
        ({"mode": "homing"}, "the arm is in mode homing"),
        ({"mode": "training", "loading": None}, None),
    ],
)
def test_a_task_uses_the_arm_from_the_moment_it_waits_for_its_policy(status: dict[str, Any], why: str | None) -> None:
    assert in_use(status) == why


def test_without_an_agent_the_arm_rests(short_dir: Path) -> None:
    told: list[str | None] = []
    watch = ArmInUse(short_dir / "nobody.sock", told.append)
    watch.start()
    watch.close()
    watch.join(10)
    assert told == []
