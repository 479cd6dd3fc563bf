"""A real broker, the real process, and eleven thousand messages that nobody should send."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import batched
from pathlib import Path

import pytest

from agent.api.mqtt.commands import Reason
from agent.config import StationConfig
from tests.mqtt.broker import Broker, Peer, connected
from tests.mqtt.daemon import FakeDaemon, command, payload
from tests.mqtt.hostile import GOOD_ARGS, Hostile, crafted_messages, random_messages

ROOT = "so/v1/test"
AT_ONCE = 50
RANDOM, CRAFTED = 10_000, 1_000
GROWTH_MAX_MB = 16.0
"""Of the process, over eleven thousand messages. They would have 20 MB, if they were all kept."""

PROGRAM = """
import json, sys
from agent.api.mqtt.process import main
from agent.config import StationConfig
from agent.telemetry import configure
config = StationConfig.model_validate(json.loads(sys.argv[1]))
configure(config.logging, process="mqtt")
main(config)
"""


@contextlib.contextmanager
def process(config: StationConfig, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The surface's process, as the supervisor forks it."""
    with log.open("ab") as file:
        started = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, config.model_dump_json()], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextlib.asynccontextmanager
async def station(config: StationConfig, folder: Path, broker: Broker) -> AsyncIterator[tuple[FakeDaemon, int, Peer]]:
    daemon = FakeDaemon()
    async with daemon.serve(config.paths.agent_socket), connected(broker.port, f"{ROOT}/#") as peer:
        with process(config, folder / "mqtt.log") as started:
            await peer.wait(f"{ROOT}/state", timeout_s=30)
            yield daemon, started.pid, peer
            assert started.poll() is None, (folder / "mqtt.log").read_text()


async def send(peer: Peer, messages: Iterator[Hostile]) -> int:
    sent = 0
    for batch in batched(messages, AT_ONCE):
        await asyncio.gather(
            *(
                peer.client.publish(f"{ROOT}/cmd/{one.verb}", one.payload, qos=1, retain=one.retain, timeout=60)
                for one in batch
            )
        )
        sent += len(batch)
        await _until_quiet(peer)
    return sent


async def _until_quiet(peer: Peer) -> None:
    """Its answers are there: the next ones must be looked at, too, not thrown away because they come too fast."""
    made = command()
    await peer.client.publish(f"{ROOT}/cmd/status", payload(made), qos=1)
    await peer.wait(
        f"{ROOT}/ack", lambda ack: ack["id"] == made["id"], timeout_s=60, after=max(0, len(peer.heard) - 99)
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_eleven_thousand_hostile_messages_move_nothing_and_cost_nothing(
    broker: Broker, make_config: Callable[..., StationConfig], short_dir: Path
) -> None:
    config = make_config(mqtt={"host": "127.0.0.1", "port": broker.port, "trust_clock": True})
    async with station(config, short_dir, broker) as (daemon, pid, peer):
        await send(peer, random_messages(1000, seed=0))
        before_mb = resident_mb(pid)
        await send(peer, random_messages(RANDOM, seed=1))
        await send(peer, crafted_messages(CRAFTED, seed=2))
        grown_mb = resident_mb(pid) - before_mb
        print(f"{before_mb:.1f} MB, grown by {grown_mb:.1f} MB")
        assert daemon.moved() == []
        assert daemon.calls == []
        answers = [json.loads(message.payload) for message in peer.on(f"{ROOT}/ack")]
        refused = Counter(answer["code"] for answer in answers if answer["status"] == "refused")
        print(refused)
        assert set(refused) <= set(Reason)
        assert refused.total() > 0.9 * (RANDOM + CRAFTED)
        assert grown_mb < GROWTH_MAX_MB
        for verb in ("hold", "park", "estop"):
            made = command()
            await peer.client.publish(f"{ROOT}/cmd/{verb}", payload(made), qos=1)
            answer = await peer.wait(f"{ROOT}/ack", lambda ack, made=made: ack["id"] == made["id"])
            # There is no arm process here, and an e-stop says so.
            assert answer["status"] == ("refused" if verb == "estop" else "done"), answer
        # The agent is told of an e-stop, beside the arm.
        verbs = [verb for verb, _ in daemon.calls]
        assert verbs[:2] == ["hold", "park"]
        assert set(verbs[2:]) <= {"estop"}  # it is told beside the arm, and one that is busy is not waited for


async def test_crafted_messages_are_wrong_in_one_way_only() -> None:
    """With the same arguments and nothing wrong, every verb passes: the test above is not about bad examples."""
    from agent.api.mqtt.commands import REQUESTS, VERBS

    for verb in VERBS:
        REQUESTS[verb].model_validate(GOOD_ARGS.get(verb, {}))


async def test_sigterm_ends_it_with_a_goodbye(
    broker: Broker, make_config: Callable[..., StationConfig], short_dir: Path
) -> None:
    config = make_config(mqtt={"host": "127.0.0.1", "port": broker.port})
    daemon = FakeDaemon()
    async with daemon.serve(config.paths.agent_socket), connected(broker.port, f"{ROOT}/online") as peer:
        with process(config, short_dir / "mqtt.log") as started:
            await peer.wait(f"{ROOT}/online", lambda online: online["online"], timeout_s=30)
            started.send_signal(signal.SIGTERM)
            goodbye = await peer.wait(f"{ROOT}/online", lambda online: not online["online"], timeout_s=30)
            assert goodbye["reason"] == "the agent was stopped"
            assert await asyncio.to_thread(started.wait, 30) == 0
