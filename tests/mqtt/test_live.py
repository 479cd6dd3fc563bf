"""A whole station on a broker that is killed and comes back: nothing of the station's work depends on it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mqtt.broker import Broker, Peer, connected
from tests.mqtt.daemon import command, payload
from tests.station.live import LiveStation
from tests.task.conftest import SETTINGS, scripted_station

AWAY_S = 3.0
LEASE_S = 1.0
MEMORY_MAX_MB = 60.0


class Desk:
    """The fleet's desk: asks, and keeps control for as long as it is asked to."""

    def __init__(self, peer: Peer, root: str) -> None:
        self.peer = peer
        self.root = root

    async def ask(self, verb: str, args: dict[str, Any] | None = None, timeout_s: float = 30.0) -> dict[str, Any]:
        made = command(args, life_s=5.0)
        await self.peer.client.publish(f"{self.root}/cmd/{verb}", payload(made), qos=1)
        answer: dict[str, Any] = await self.peer.wait(
            f"{self.root}/ack", lambda ack: ack["id"] == made["id"] and ack["status"] != "progress", timeout_s
        )
        return answer

    @contextlib.asynccontextmanager
    async def control(self) -> AsyncIterator[str]:
        token = (await self.ask("lease.take", {"owner": "the desk", "ttl_s": LEASE_S}))["result"]["token"]

        async def keep() -> None:
            while True:
                await self.peer.client.publish(
                    f"{self.root}/cmd/lease.renew", payload(command({"token": token})), qos=1
                )
                await asyncio.sleep(LEASE_S / 4)

        keeping = asyncio.create_task(keep())
        try:
            yield token
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def state(self, matches: Callable[[dict[str, Any]], bool], timeout_s: float = 30.0) -> dict[str, Any]:
        after = max((n for n, one in enumerate(self.peer.heard) if one.topic.value == f"{self.root}/state"), default=0)
        found: dict[str, Any] = await self.peer.wait(f"{self.root}/state", matches, timeout_s, after)
        return found


@contextlib.asynccontextmanager
async def desk(broker: Broker, live: LiveStation) -> AsyncIterator[Desk]:
    root = f"so/v1/{live.config.station}"
    async with connected(broker.port, f"{root}/#") as peer:
        await peer.wait(f"{root}/online", lambda online: online["online"], timeout_s=60)
        yield Desk(peer, root)


async def off[**P, T](work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`LiveStation` blocks; the broker's clients want the event loop meanwhile."""
    return await asyncio.to_thread(work, *args, **kwargs)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_broker_that_dies_takes_nothing_with_it(broker: Broker, short_dir: Path) -> None:
    live = scripted_station(
        short_dir / "station",
        policy=SETTINGS,
        recording__max_repeat_pct=100,
        mqtt={"host": "127.0.0.1", "port": broker.port, "trust_clock": True},
    )
    try:
        await off(live.start_virtual, "--seed", "1")
        await off(live.start_agent)
        await off(live.wait_mode, "idle")
        for stage in (_commands_need_control, _recording_goes_on, _local_task_goes_on, _remote_task_holds, _stop):
            await stage(live, broker)
    finally:
        await off(live.close)


async def _commands_need_control(live: LiveStation, broker: Broker) -> None:
    async with desk(broker, live) as there:
        await there.state(lambda state: state["mode"] == "idle")
        refused = await there.ask("park")
        assert (refused["status"], refused["code"]) == ("refused", "no-control")
        assert (await there.ask("status"))["result"]["mode"] == "idle"
        numbers = await there.peer.wait(f"{there.root}/telemetry", lambda told: told["measured"])
        assert len(numbers["measured"]) == 6
        assert set(numbers["temperature_c"]) >= {"gripper"}


async def _recording_goes_on(live: LiveStation, broker: Broker) -> None:
    await off(live.teleop)
    await off(live.client.call, "record.start", {"task": "while it is away"})
    pid = live.child_pid("mqtt")
    await off(broker.kill)
    before = (await off(live.status))["recording"]["frames"]  # type: ignore[index]
    await asyncio.sleep(AWAY_S)
    after = (await off(live.status))["recording"]["frames"]  # type: ignore[index]
    assert after - before > 0.8 * AWAY_S * live.config.recording.fps
    await off(broker.start)
    async with desk(broker, live) as there:
        state = await there.state(lambda state: state["recording"] is not None)
        assert state["recording"]["task"] == "while it is away"
        finished = await there.ask("record.stop", {"success": True})
        assert finished["status"] == "done", finished
        (result,) = finished["result"]["results"]
        assert result["outcome"] == "committed"
        assert result["frames"] >= after
        # What happened while nobody listened is told, too.
        await there.peer.wait(f"{there.root}/event", lambda event: event["kind"] == "episode")
    assert live.child_pid("mqtt") == pid
    memory = _memory_mb(pid)
    print(f"the process of the surface, MB: {memory}")
    assert memory["Private_Dirty"] < MEMORY_MAX_MB
    await off(live.client.call, "hold")


def _memory_mb(pid: int) -> dict[str, float]:
    """It is forked from a process that has imported much more, and shares those pages: what counts is its own."""
    fields = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {name.rstrip(":"): int(kb) / 1024 for name, kb, *_ in fields}


async def _local_task_goes_on(live: LiveStation, broker: Broker) -> None:
    await off(live.client.call, "task.start", {"task": "go 30", "policy": "script"}, 60.0)
    await off(broker.kill)
    await asyncio.sleep(AWAY_S)
    status = await off(live.status)
    assert status
    assert status["mode"] == "executing", status["reason"]
    await off(broker.start)
    async with desk(broker, live) as there:
        await there.state(lambda state: state["mode"] == "executing" and state["task"]["task"] == "go 30")
        assert (await there.ask("hold"))["status"] == "done"  # nobody needs control to stop
        await there.state(lambda state: state["mode"] == "hold" and state["task"] is None)


async def _remote_task_holds(live: LiveStation, broker: Broker) -> None:
    """Who moves an arm from afar and is cut off does not see it any more."""
    async with desk(broker, live) as there, there.control() as token:
        started = await there.ask("task.start", {"task": "go -30", "policy": "script", "lease": token}, 60.0)
        assert started["status"] == "done", started
        await there.state(lambda state: state["mode"] == "executing" and state["lease"] == "the desk")
        await off(broker.kill)
        await off(live.wait_mode, "hold", timeout_s=LEASE_S + 2)
    await off(broker.start)


async def _stop(live: LiveStation, broker: Broker) -> None:
    async with desk(broker, live) as there:
        stopped = await there.ask("estop", {"cause": "a hand in the way"})
        assert (stopped["status"], stopped["result"]["verified"]) == ("done", True)
        state = await there.state(lambda state: state["mode"] == "estop")
        assert (state["estop_verified"], "a hand in the way" in state["reason"]) == (True, True)
        assert (await there.ask("reset"))["code"] == "unknown-verb"
    await off(live.client.call, "reset")
