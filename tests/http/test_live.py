"""The stream that the page lives from: what it carries, that it goes on, and that slow readers cost nothing."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.api.http.access.tokens import Role, TokenStore
from agent.api.http.live import BACKLOG_EVENTS, MAX_VIEWERS, Viewer
from agent.config import StationConfig
from agent.events import EventKind
from agent.messages import Drive, Limit, Source, Tick
from agent.transport import Publisher
from tests.http.conftest import Bench

type Told = tuple[str, dict[str, Any], str | None]
WAIT_S = 20.0


async def stream(bench: Bench, **headers: str) -> AsyncIterator[Told]:
    """Kind, data and number of what comes."""
    async with bench.http.stream("GET", "/api/v1/live", headers=headers, timeout=WAIT_S) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        about: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                about[name] = value
            elif "event" in about:
                yield about["event"], json.loads(about["data"]), about.get("id")
                about = {}


async def until(told: AsyncIterator[Told], kind: str) -> Told:
    async with asyncio.timeout(WAIT_S):
        async for each in told:
            if each[0] == kind:
                return each
    raise AssertionError(f"the stream ended without {kind}")


@contextmanager
def ticks(config: StationConfig) -> Iterator[Publisher]:
    config.paths.run.mkdir(parents=True, exist_ok=True)
    with closing(Publisher(config.paths.arm_pub)) as publisher:
        yield publisher


def a_tick(seq: int) -> Tick:
    pose = (float(seq), 1.0, 2.0, 3.0, 4.0, 50.0)
    now_ns = time.monotonic_ns()
    limits = (Limit("gripper", "speed", 9.0, 5.0),)
    return Tick(seq, now_ns, now_ns, Drive.FOLLOW, Source.LEADER, pose, pose, pose, pose, limits)


async def test_the_status_comes_at_once_and_with_every_change(bench: Bench) -> None:
    told = stream(bench)
    _, first, _ = await until(told, "status")
    assert first["running"] is True
    assert first["status"]["mode"] == "idle"
    await bench.http.post("/api/v1/hold")
    changed_s = time.monotonic()
    while (await until(told, "status"))[1]["status"]["mode"] != "hold":
        pass
    assert time.monotonic() - changed_s < 5
    await told.aclose()  # type: ignore[attr-defined]


async def test_joints_come_from_the_arm_process_ten_times_a_second(bench: Bench, config: StationConfig) -> None:
    told = stream(bench)
    await until(told, "status")
    with ticks(config) as publisher:

        async def publish() -> None:
            for seq in range(10_000):
                publisher.send(a_tick(seq))
                await asyncio.sleep(1 / 100)

        publishing = asyncio.create_task(publish())
        began_s = time.monotonic()
        joints = [(await until(told, "joints"))[1] for _ in range(5)]
        took_s = time.monotonic() - began_s
        publishing.cancel()
    assert joints[0]["limited"] == ["gripper"]
    assert joints[0]["drive"] == "follow"
    assert took_s > 0.3, "of 100 ticks a second every tenth is shown"
    assert all(0 <= each["age_ms"] < 5000 for each in joints)
    await told.aclose()  # type: ignore[attr-defined]


async def test_who_comes_back_is_told_what_was_missed(bench: Bench) -> None:
    told = stream(bench)
    await until(told, "status")
    bench.station.events.publish(EventKind.CHILD, "one")
    _, event, number = await until(told, "event")
    while event["text"] != "one.":
        _, event, number = await until(told, "event")
    assert number == str(event["seq"])
    await told.aclose()  # type: ignore[attr-defined]
    bench.station.events.publish(EventKind.CHILD, "two")
    bench.station.events.publish(EventKind.CHILD, "three")
    again = stream(bench, **{"Last-Event-ID": number or ""})
    assert [(await until(again, "event"))[1]["text"] for _ in range(2)] == ["two.", "three."]
    await again.aclose()  # type: ignore[attr-defined]


async def test_it_says_that_the_agent_does_not_answer(bench: Bench, config: StationConfig) -> None:
    told = stream(bench)
    await until(told, "status")
    config.paths.agent_socket.rename(config.paths.agent_socket.with_suffix(".away"))
    while (await until(told, "status"))[1]["running"]:
        pass
    config.paths.agent_socket.with_suffix(".away").rename(config.paths.agent_socket)
    while not (await until(told, "status"))[1]["running"]:
        pass
    await told.aclose()  # type: ignore[attr-defined]


async def test_a_stream_ends_with_the_token_that_began_it(bench: Bench, access: Path) -> None:
    """It would go on for ever, and show somebody's home to whoever was meant to be out."""
    _, secret = TokenStore(access).create("phone", Role.READ)
    async with bench.as_token(secret) as phone, phone.stream("GET", "/api/v1/live", timeout=WAIT_S) as answer:
        lines = answer.aiter_lines()
        async with asyncio.timeout(WAIT_S):
            async for line in lines:
                if line == "event: status":
                    break
            TokenStore(access).revoke("phone")
            async for _ in lines:
                pass  # until the station ends it


async def test_viewers_are_bounded(bench: Bench) -> None:
    streams = [stream(bench) for _ in range(MAX_VIEWERS)]
    for each in streams:
        await until(each, "status")
    answer = await bench.http.get("/api/v1/live")
    assert (answer.status_code, answer.json()["code"]) == (429, "too-many")
    assert (await bench.http.post("/api/v1/estop", json={})).status_code == 200, "a stop gets through all the same"
    for each in streams:
        await each.aclose()  # type: ignore[attr-defined]
    late = stream(bench)
    await until(late, "status")
    await late.aclose()  # type: ignore[attr-defined]


async def test_a_slow_viewer_has_the_newest_and_a_bounded_backlog() -> None:
    viewer = Viewer()
    for number in range(10 * BACKLOG_EVENTS):
        viewer.show("joints", str(number))
        viewer.happened(number, str(number))
    events, newest = await viewer.next()
    assert newest == {"joints": str(10 * BACKLOG_EVENTS - 1)}
    assert [seq for seq, _ in events] == list(range(9 * BACKLOG_EVENTS, 10 * BACKLOG_EVENTS))


@pytest.mark.parametrize("number", ["x", "-1", "9" * 30])
async def test_a_number_that_is_none_is_refused(bench: Bench, number: str) -> None:
    assert (await bench.http.get("/api/v1/live", headers={"Last-Event-ID": number})).status_code == 422
