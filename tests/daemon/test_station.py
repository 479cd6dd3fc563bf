"""What the station answers while its children are not there yet: requests, events, who may ask for what."""

import asyncio
from typing import Any

import pytest

from agent.api.local import AsyncClient, serve
from agent.clock import SystemClock
from agent.config import StationConfig
from agent.errors import BadInput
from agent.events import EventKind
from agent.modes import Mode
from agent.station import Station


@pytest.fixture
def config(make_config: Any) -> StationConfig:
    config: StationConfig = make_config()
    return config


@pytest.fixture
def station(config: StationConfig) -> Station:
    return Station(config, SystemClock())


async def test_events_are_there_for_the_asking(station: Station, config: StationConfig) -> None:
    station.machine.to(Mode.IDLE, "parked")
    async with serve(config.paths.agent_socket, station.handle):
        client = AsyncClient(config.paths.agent_socket)
        answer = await client.call("events")
        assert [event["text"] for event in answer["events"]] == ["Idle: parked."]
        assert answer["events"][0]["data"] == {"before": "starting", "after": "idle", "cause": "parked"}
        assert (answer["last"], answer["lost"]) == (answer["events"][0]["seq"], 0)
        assert (await client.call("events", {"since": answer["last"]}))["events"] == []
        for args in ({"since": -1}, {"since": "x"}, {"since": True}, {"follow": 1}, {"color": "red"}):
            with pytest.raises(BadInput):
                await client.call("events", args)


async def test_events_are_followed_across_a_restart_without_a_gap_or_a_repeat(config: StationConfig) -> None:
    client = AsyncClient(config.paths.agent_socket)
    stream = client.events()
    heard: list[Any] = []

    async def until(count: int) -> None:
        async with asyncio.timeout(10):
            while len(heard) < count:
                told = await anext(stream)
                if "last" not in told:
                    heard.append(told["event"]["text"] if "event" in told else told)

    first = Station(config, SystemClock())
    async with serve(config.paths.agent_socket, first.handle):
        first.events.publish(EventKind.CHILD, "one")
        await until(1)
        first.events.publish(EventKind.CHILD, "two")
        await until(2)
    second = Station(config, SystemClock())
    second.events.publish(EventKind.CHILD, "three")
    async with serve(config.paths.agent_socket, second.handle):
        await until(4)
        second.events.publish(EventKind.CHILD, "four")
        await until(5)
    await stream.aclose()
    assert heard == ["one.", "two.", {"running": False}, "three.", "four."]
