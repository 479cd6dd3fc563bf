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


async def test_surfaces_are_children_only_when_they_are_configured(make_config: Any) -> None:
    assert {"web", "mqtt"} & set(Station(make_config(), SystemClock()).supervisor.children) == set()
    both = Station(make_config(http={}, mqtt={"host": "127.0.0.1"}), SystemClock())
    assert list(both.supervisor.children)[-2:] == ["web", "mqtt"]
    assert not any(both.supervisor.is_vital(name) for name in ("web", "mqtt", "surfaces"))


async def test_a_surface_says_that_it_lives(make_config: Any) -> None:
    station = Station(make_config(http={}), SystemClock())
    async with serve(station.paths.agent_socket, station.handle):
        client = AsyncClient(station.paths.agent_socket, via="http")
        beating = asyncio.create_task(client.stay_alive("web"))
        async with asyncio.timeout(5):
            while station.supervisor.children["web"].heard_ns is None:  # noqa: ASYNC110 - another task's doing
                await asyncio.sleep(0.001)
        beating.cancel()
        for child in ("arm", "mqtt", 7):
            with pytest.raises(BadInput):
                await client.call("alive", {"child": child})
        assert station.supervisor.children["arm"].heard_ns is None


async def test_the_end_of_a_surface_changes_nothing_about_the_arm(make_config: Any) -> None:
    station = Station(make_config(http={}), SystemClock())
    station.machine.to(Mode.IDLE, "parked")
    station._child_down("web", "killed by SIGSEGV")
    station._child_failed("web", "web died 5 times within 60 s")
    station._child_failed("surfaces", "the surfaces cannot be started")
    assert station.machine.mode is Mode.IDLE
    told = [event.text for event in station.events.since(0)[1] if event.kind is EventKind.CHILD]
    assert told == [
        "The process web ended: killed by SIGSEGV.",
        "Given up: web died 5 times within 60 s.",
        "Given up: the surfaces cannot be started.",
    ]
    station._child_failed("recorder", "recorder died 5 times within 60 s")
    assert station.machine.mode is Mode.FAULT
