"""The fleet's desk: knows who is online, sends commands, and times their answers."""

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from aiomqtt import Client, MqttError, ProtocolVersion, TLSParameters
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from benchmarks.control_bench.stats import percentile

ANSWER_S: Final = 10.0
"""A command that was not answered by then is lost."""

LIFE_S: Final = 10.0
RETRY_S: Final = 0.05
VERBS: Final = ("hold", "task.stop")
"""One that is carried out first and remembered then, and one the other way round."""


class Desk:
    def __init__(self, folder: Path, port: int, plain: bool) -> None:
        tls = folder / "tls"
        self._tls = None if plain else TLSParameters(*(str(tls / f) for f in ("ca.crt", "fleet.crt", "fleet.key")))
        self._port = port
        self._client: Client | None = None
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._changed = asyncio.Condition()
        self.online: set[str] = set()
        self.arrivals: list[tuple[float, int]] = []  # moment of the monotonic clock, how many are online then

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Desk"]:
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        """Connected again as soon as there is a broker: it is what watches the others come back."""
        while True:
            with contextlib.suppress(MqttError):
                async with Client(
                    "localhost", self._port, protocol=ProtocolVersion.V5, identifier="fleet", tls_params=self._tls
                ) as client:
                    await client.subscribe([("so/v1/+/online", 1), ("so/v1/+/ack/desk", 1)])  # type: ignore[arg-type]
                    self._client = client
                    await self._listen(client)
            self._client = None
            self.online.clear()
            await asyncio.sleep(RETRY_S)

    async def _listen(self, client: Client) -> None:
        async for message in client.messages:
            *_, station, what = message.topic.value.removesuffix("/desk").split("/")
            told = json.loads(bytes(message.payload))  # type: ignore[arg-type]
            if what == "ack":
                if future := self._waiting.pop(told["id"], None):
                    future.set_result(None)
                continue
            (self.online.add if told["online"] else self.online.discard)(station)
            async with self._changed:
                self.arrivals.append((time.monotonic(), len(self.online)))
                self._changed.notify_all()

    async def wait_online(self, count: int, timeout_s: float) -> float:
        """Seconds until `count` stations are online. Raises TimeoutError."""
        began = time.monotonic()
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: len(self.online) >= count)
        return time.monotonic() - began

    async def wait_empty(self, timeout_s: float) -> None:
        """Until everybody has said goodbye. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: not self.online)

    async def command(self, rate_hz: float, seconds: float, chance: random.Random) -> list[float | None]:
        """Commands to stations at random, evenly in time: ms until each was answered, None for those that were not."""
        stations = sorted(self.online)
        began = time.monotonic()
        asked = []
        for number in range(round(rate_hz * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate_hz - time.monotonic()))
            asked.append(asyncio.create_task(self._ask(chance.choice(stations), VERBS[number % len(VERBS)])))
        return list(await asyncio.gather(*asked))

    async def _ask(self, station: str, verb: str) -> float | None:
        made = {"id": str(uuid.uuid4()), "issued_at": _iso(0.0), "expires_at": _iso(LIFE_S)}
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = f"so/v1/{station}/ack/desk"
        future = self._waiting[made["id"]] = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        try:
            assert self._client  # noqa: S101 - nobody asks while there is no broker
            async with asyncio.timeout(ANSWER_S):
                await self._client.publish(
                    f"so/v1/{station}/cmd/{verb}", json.dumps(made), qos=1, properties=properties
                )
                await future
        except (TimeoutError, MqttError):
            self._waiting.pop(made["id"], None)
            return None
        return (time.monotonic() - began) * 1000


def _iso(later_s: float) -> str:
    return datetime.fromtimestamp(time.time() + later_s, UTC).isoformat()


def summary(answers: list[float | None]) -> dict[str, float | int | None]:
    """p50, p99 and the longest in ms, and how many were never answered."""
    good = [answer for answer in answers if answer is not None]
    return {
        "commands": len(answers),
        "lost": len(answers) - len(good),
        "p50_ms": round(percentile(good, 50), 1) if good else None,
        "p99_ms": round(percentile(good, 99), 1) if good else None,
        "max_ms": round(max(good), 1) if good else None,
    }
