"""A real mosquitto on a port of its own, and who talks to it in tests."""

import asyncio
import contextlib
import json
import logging
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiomqtt import Client, Message, ProtocolVersion, TLSParameters

MOSQUITTO = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
START_S = 10.0

QUIET = logging.getLogger("tests.mqtt")
"""The library warns of more than ten messages under way; that is what some tests are about."""
QUIET.setLevel(logging.ERROR)

NO_MOSQUITTO = "mosquitto is not installed (apt install mosquitto)"

needs_mosquitto = pytest.mark.skipif(not Path(MOSQUITTO).exists(), reason=NO_MOSQUITTO)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """Starts, kills and restarts one mosquitto on the same port."""

    def __init__(self, folder: Path, *settings: str, allow_anonymous: bool = True) -> None:
        if not Path(MOSQUITTO).exists():
            pytest.skip(NO_MOSQUITTO)
        self.folder = folder
        self.port = free_port()
        self.file = folder / "mosquitto.conf"
        self.log = folder / "mosquitto.log"
        lines = [f"listener {self.port} 127.0.0.1", *settings]
        if allow_anonymous:
            lines.append("allow_anonymous true")
        self.file.write_text("\n".join(lines) + "\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [MOSQUITTO, "-c", self.file, "-v"], stdout=log, stderr=subprocess.STDOUT, cwd=self.folder
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            time.sleep(0.02)
        raise AssertionError(f"mosquitto did not listen: {self.log.read_text()}")

    def kill(self) -> None:
        """As a power cut would."""
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(10)
            self.process = None


@contextlib.contextmanager
def running(broker: Broker) -> Iterator[Broker]:
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


class Peer:
    """Somebody on the broker: keeps everything that arrives on the topics it follows."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.heard: list[Message] = []
        self._news = asyncio.Condition()

    async def listen(self) -> None:
        async for message in self.client.messages:
            async with self._news:
                self.heard.append(message)
                self._news.notify_all()

    def on(self, topic: str) -> list[Message]:
        return [message for message in self.heard if message.topic.value == topic]

    async def wait(self, topic: str, matches: Any = None, timeout_s: float = 10.0, after: int = 0) -> Any:
        """The JSON of the first message on `topic` that `matches`, among those heard after the first `after`."""

        looked, value = after, None

        def found() -> bool:
            nonlocal looked, value
            while looked < len(self.heard):
                message = self.heard[looked]
                looked += 1
                if message.topic.value == topic and isinstance(message.payload, bytes):
                    value = json.loads(message.payload)
                    if matches is None or matches(value):
                        return True
            return False

        try:
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(found)
        except TimeoutError:
            tail = [(message.topic.value, message.payload[:200]) for message in self.heard[-10:]]
            raise AssertionError(f"nothing on {topic} within {timeout_s:g} s; heard last: {tail}") from None
        return value


@contextlib.asynccontextmanager
async def connected(
    port: int, *topics: str, tls: TLSParameters | None = None, host: str = "127.0.0.1", **options: Any
) -> AsyncIterator[Peer]:
    options = {"timeout": 30.0, "logger": QUIET, **options}
    async with Client(host, port, protocol=ProtocolVersion.V5, tls_params=tls, **options) as client:
        peer = Peer(client)
        for topic in topics:
            await client.subscribe(topic, qos=1)
        listening = asyncio.create_task(peer.listen())
        try:
            yield peer
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
