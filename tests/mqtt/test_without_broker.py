"""A broker that is away, comes back, or is no broker at all."""

import asyncio
import errno
import json
import logging
from collections.abc import Callable

import pytest

from agent.api.mqtt.process import handle_stray
from agent.config import StationConfig
from tests.mqtt.broker import Broker, connected, free_port
from tests.mqtt.conftest import Bench, surfaced
from tests.mqtt.daemon import FakeDaemon, command, payload

ROOT = "so/v1/test"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries come quickly after each other."""
    monkeypatch.setattr("agent.api.mqtt.backoff.LONGEST_S", 0.3)
    monkeypatch.setattr("agent.api.mqtt.backoff.FIRST_S", 0.2)


@pytest.mark.usefixtures("soon")
async def test_what_happened_while_it_was_away_is_told_when_it_is_back(bench: Bench, broker: Broker) -> None:
    async with connected(broker.port, f"{ROOT}/#") as peer:
        await bench.daemon.happen("before")
        await peer.wait(f"{ROOT}/event", lambda event: event["text"] == "before")
    broker.kill()
    for number in range(5):
        await bench.daemon.happen(f"meanwhile {number}")
    await bench.daemon.become("hold", "meanwhile")
    await asyncio.sleep(0.5)
    async with asyncio.timeout(20):
        broker.start()
        async with connected(broker.port, f"{ROOT}/#") as peer:
            await peer.wait(f"{ROOT}/online", lambda online: online["online"])
            await peer.wait(f"{ROOT}/state", lambda state: state["mode"] == "hold")
            await peer.wait(f"{ROOT}/event", lambda event: event["text"] == "hold: meanwhile")
            told = [json.loads(message.payload)["text"] for message in peer.on(f"{ROOT}/event")]
    assert told == [*(f"meanwhile {number}" for number in range(5)), "hold: meanwhile"]


@pytest.mark.usefixtures("soon")
async def test_an_answer_waits_for_the_broker_and_the_work_is_done_without_it(bench: Bench, broker: Broker) -> None:
    made = command({"task": "reach the red disc"})
    bench.daemon.gate.clear()  # the task loads its policy for a while
    async with connected(broker.port) as peer:
        await peer.client.publish(f"{ROOT}/cmd/task.start", payload(made), qos=1)
        await asyncio.wait_for(bench.daemon.asked.wait(), 10)
    broker.kill()
    bench.daemon.gate.set()
    await asyncio.sleep(0.3)
    broker.start()
    async with connected(broker.port, f"{ROOT}/ack") as peer:
        answer = await peer.wait(f"{ROOT}/ack", lambda ack: ack["id"] == made["id"] and ack["status"] == "done")
    assert answer["verb"] == "task.start"
    assert bench.daemon.moved() == ["task.start"]


@pytest.mark.usefixtures("soon")
async def test_a_command_from_while_it_was_away_is_not_delivered_later(bench: Bench, broker: Broker) -> None:
    """A session is never kept by the broker: nothing waits there for a station that comes back an hour later."""
    bench.task.cancel()
    await asyncio.gather(bench.task, return_exceptions=True)
    async with connected(broker.port) as peer:
        await peer.client.publish(f"{ROOT}/cmd/hold", payload(command(life_s=60.0)), qos=1)
    async with surfaced(
        bench.config.model_copy(update={"run_dir": bench.config.paths.run / "again"}), FakeDaemon()
    ) as again:
        async with connected(broker.port, f"{ROOT}/#") as peer:
            await peer.wait(f"{ROOT}/state")
            made = command()
            await peer.client.publish(f"{ROOT}/cmd/hold", payload(made), qos=1)
            await peer.wait(f"{ROOT}/ack", lambda ack: ack["id"] == made["id"])
        assert [verb for verb, _ in again.daemon.calls] == ["hold"]


async def test_a_retained_command_is_refused_at_every_connection(
    broker: Broker, make_config: Callable[..., StationConfig]
) -> None:
    made = command(life_s=60.0)
    async with connected(broker.port, f"{ROOT}/ack") as peer:
        await peer.client.publish(f"{ROOT}/cmd/park", payload(made), qos=1, retain=True)
        for number in range(2):
            config = make_config(mqtt={"host": "127.0.0.1", "port": broker.port})
            daemon = FakeDaemon()
            async with surfaced(config, daemon):
                after = len(peer.heard)
                answer = await peer.wait(f"{ROOT}/ack", lambda ack: ack["id"] == made["id"], after=after * number)
            assert (answer["code"], daemon.calls) == ("retained", [])


@pytest.mark.usefixtures("soon")
async def test_a_server_that_never_answers_costs_nothing(
    make_config: Callable[..., StationConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Something else may listen on that port. Each try is closed before the next one."""
    monkeypatch.setattr("agent.api.mqtt.surface.ANSWER_S", 0.1)
    open_now, tries, most = 0, 0, 0
    enough = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, tries, most
        open_now, tries = open_now + 1, tries + 1
        most = max(most, open_now)
        if tries >= 8:
            enough.set()
        try:
            await reader.read()  # until the other side closes
        finally:
            open_now -= 1
            writer.close()

    port = free_port()
    async with await asyncio.start_server(swallow, "127.0.0.1", port):
        config = make_config(mqtt={"host": "127.0.0.1", "port": port})
        async with surfaced(config, FakeDaemon()):
            with caplog.at_level(logging.ERROR):
                await asyncio.wait_for(enough.wait(), 20)
    assert most <= 2
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.usefixtures("soon")
async def test_weeks_without_a_broker_are_one_line_in_the_log(
    make_config: Callable[..., StationConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(mqtt={"host": "127.0.0.1", "port": free_port()})
    async with surfaced(config, FakeDaemon()) as bench:
        await asyncio.sleep(2.0)
        assert not bench.task.done()
    assert capsys.readouterr().out.count("not connected to the broker") == 1


async def test_only_a_socket_that_was_closed_too_early_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    handle_stray(loop, {"message": "add_writer", "exception": OSError(errno.EBADF, "Bad file descriptor")})
    assert not caplog.records
    handle_stray(loop, {"message": "a bug", "exception": RuntimeError("a bug")})
    assert "a bug" in caplog.text
