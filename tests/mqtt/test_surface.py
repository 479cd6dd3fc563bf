"""A station on a real broker: what it says, what it takes, and how it answers."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiomqtt import Message
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.api.mqtt.orders import RUNNING_MAX
from agent.config import StationConfig
from tests.mqtt.broker import Broker, Peer, connected
from tests.mqtt.conftest import Bench, settings, surfaced
from tests.mqtt.daemon import FakeDaemon, command, payload

ROOT = "so/v1/test"


async def ask(peer: Peer, verb: str, made: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The answer to a command that gets one."""
    await peer.client.publish(f"{ROOT}/cmd/{verb}", payload(made), qos=1, **options)
    answer: dict[str, Any] = await peer.wait(
        f"{ROOT}/ack", lambda ack: ack["id"] == made["id"] and ack["status"] != "progress"
    )
    return answer


async def test_whoever_comes_later_finds_that_it_is_online_and_what_it_does(bench: Bench, broker: Broker) -> None:
    async with connected(broker.port, f"{ROOT}/#") as peer:
        online = await peer.wait(f"{ROOT}/online")
        state = await peer.wait(f"{ROOT}/state")
    assert online["online"] is True
    assert (state["mode"], state["reason"], state["reachable"]) == ("idle", "parked", True)


async def test_a_change_is_published_at_once(bench: Bench, broker: Broker) -> None:
    async with connected(broker.port, f"{ROOT}/#") as peer:
        await peer.wait(f"{ROOT}/state")
        await bench.daemon.become("hold", "a test asked for it")
        event = await peer.wait(f"{ROOT}/event")
        state = await peer.wait(f"{ROOT}/state", lambda state: state["mode"] == "hold")
    assert event["text"] == "hold: a test asked for it"
    assert state["reason"] == "a test asked for it"


async def test_hold_is_carried_out_and_answered(bench: Bench, broker: Broker) -> None:
    async with connected(broker.port, f"{ROOT}/#") as peer:
        answer = await ask(peer, "hold", command())
    assert (answer["status"], answer["verb"], answer["result"]["mode"]) == ("done", "hold", "hold")
    assert bench.daemon.calls == [("hold", {})]


async def test_the_answer_goes_where_it_was_asked_for(bench: Bench, broker: Broker) -> None:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic = f"{ROOT}/ack/desk"
    properties.CorrelationData = b"\x00\x01 mine"
    async with connected(broker.port, f"{ROOT}/ack/#") as peer:
        await peer.client.publish(f"{ROOT}/cmd/hold", payload(command()), qos=1, properties=properties)
        answer = await peer.wait(f"{ROOT}/ack/desk")
        assert answer["status"] == "done"
        assert peer.on(f"{ROOT}/ack/desk")[0].properties.CorrelationData == b"\x00\x01 mine"
        assert not peer.on(f"{ROOT}/ack")


async def test_neither_a_password_nor_a_lease_is_logged(
    broker: Broker, make_config: Callable[..., StationConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    config = make_config(mqtt=settings(broker, username="kitchen", password_file=str(password)))
    async with surfaced(config, FakeDaemon()) as bench:
        await asyncio.wait_for(bench.surface.connected.wait(), 10)
        async with connected(broker.port, f"{ROOT}/#") as peer:
            taken = await ask(peer, "lease.take", command({"owner": "desk", "ttl_s": 2.0}))
            lease = taken["result"]["token"]
            assert (await ask(peer, "hold", command({"lease": lease})))["status"] == "done"
            assert (await ask(peer, "hold", command({"lease": lease, "more": lease})))["code"] == "malformed"
        broker.kill()
        async with asyncio.timeout(10):
            while bench.surface.connected.is_set():  # noqa: ASYNC110 - the broker's end is what ends it
                await asyncio.sleep(0.01)
    out, err = capfd.readouterr()
    assert "malformed" in out + err
    for secret in ("correct horse", lease):
        assert secret not in out + err


async def test_what_the_daemon_refuses_is_said_in_its_words(bench: Bench, broker: Broker) -> None:
    async with connected(broker.port, f"{ROOT}/#") as peer:
        answer = await ask(peer, "teleop.start", command())
    assert (answer["status"], answer["code"]) == ("refused", "refused")
    assert answer["message"] == "Not possible in mode estop: somebody pressed it."


async def test_a_dropped_connection_is_told_by_the_last_will(bench: Bench, broker: Broker) -> None:
    async with connected(broker.port, f"{ROOT}/online") as peer:
        await peer.wait(f"{ROOT}/online", lambda online: online["online"])
        # Another client of the same name: the broker throws the station out, as a dead connection would.
        async with connected(broker.port, identifier="so-test"):
            gone = await peer.wait(f"{ROOT}/online", lambda online: not online["online"])
        assert gone["at"] is None
        await peer.wait(f"{ROOT}/online", lambda online: online["online"], after=len(peer.heard))


async def test_it_says_goodbye_when_it_is_stopped(bench: Bench, broker: Broker) -> None:
    async with connected(broker.port, f"{ROOT}/online") as peer:
        await peer.wait(f"{ROOT}/online", lambda online: online["online"])
        bench.task.cancel()
        goodbye = await peer.wait(f"{ROOT}/online", lambda online: not online["online"])
    assert goodbye["reason"] == "the agent was stopped"


async def test_a_daemon_that_is_gone_is_said(bench: Bench, broker: Broker) -> None:
    async with connected(broker.port, f"{ROOT}/state") as peer:
        await peer.wait(f"{ROOT}/state")
        bench.config.paths.agent_socket.unlink()
        state = await peer.wait(f"{ROOT}/state", lambda state: not state["reachable"])
    assert state["mode"] is None
    assert "No agent answers" in state["reason"]


async def test_states_come_once_a_second_at_most(bench: Bench, broker: Broker) -> None:
    async with connected(broker.port, f"{ROOT}/state") as peer:
        await peer.wait(f"{ROOT}/state")
        began = asyncio.get_running_loop().time()
        for number in range(40):
            await bench.daemon.become("hold", f"reason {number}")
            await asyncio.sleep(0.05)
        await peer.wait(f"{ROOT}/state", lambda state: state["reason"] == "reason 39")
        took_s = asyncio.get_running_loop().time() - began
        assert len(peer.heard) <= 2 + took_s
        assert json.loads(peer.heard[-1].payload)["reason"] == "reason 39"


async def test_an_answer_that_is_too_long_is_not_sent(bench: Bench, broker: Broker) -> None:
    """The broker would cut the connection of who sends more than it takes."""
    bench.daemon.answer = {"episodes": [{"task": "reach the red disc"}] * 5000}
    async with connected(broker.port, f"{ROOT}/#") as peer:
        answer = await ask(peer, "episodes.list", command())
    assert (answer["status"], answer["result"]) == ("done", None)
    assert "too long" in answer["message"]


async def test_an_event_that_is_too_long_is_told_without_its_data(bench: Bench, broker: Broker) -> None:
    """It would be sent again at every connection, and cut every one of them."""
    async with connected(broker.port, f"{ROOT}/#") as peer:
        await bench.daemon.happen("long", data={"results": ["x" * 100] * 1000})
        await bench.daemon.happen("short", data={"results": []})
        long = await peer.wait(f"{ROOT}/event", lambda event: event["text"] == "long")
        short = await peer.wait(f"{ROOT}/event", lambda event: event["text"] == "short")
    assert (long["data"], short["data"]) == ({}, {"results": []})


async def test_an_emergency_stop_has_places_of_its_own(bench: Bench, broker: Broker) -> None:
    bench.daemon.gate.clear()  # a daemon that hangs
    async with connected(broker.port, f"{ROOT}/#") as peer:
        for _ in range(20):
            await peer.client.publish(f"{ROOT}/cmd/hold", payload(command()), qos=1)
            await peer.client.publish(f"{ROOT}/cmd/record.stop", payload(command()), qos=1)
        await peer.wait(f"{ROOT}/ack", lambda ack: ack["code"] == "busy")
        answer = await ask(peer, "estop", command())
    assert answer["code"] == "not-running"  # there is no arm process here: it was asked, past the daemon


async def test_a_bug_behind_a_command_is_answered(bench: Bench, broker: Broker) -> None:
    bench.daemon.answer = RuntimeError("a bug")
    async with connected(broker.port, f"{ROOT}/#") as peer:
        answer = await ask(peer, "park", command())
        assert answer["code"] == "agent-error"
        bench.daemon.answer = None
        assert (await ask(peer, "park", command()))["status"] == "done"


async def test_a_flood_of_good_commands_reaches_the_daemon_thinned_out(bench: Bench, broker: Broker) -> None:
    assert bench.surface.orders
    for number in range(300):  # before anything else can happen: as fast as can be
        bench.surface.orders.take(Message(f"{ROOT}/cmd/episodes.list", payload(command()), 1, False, number, None))
    async with connected(broker.port, f"{ROOT}/#") as peer:
        assert (await ask(peer, "hold", command()))["status"] == "done"
        await peer.wait(f"{ROOT}/ack", lambda ack: ack["code"] == "busy")
    assert [verb for verb, _ in bench.daemon.calls].count("episodes.list") == RUNNING_MAX
