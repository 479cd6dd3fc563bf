"""The station on a broker: connects, stays connected, and lives well without it."""

import asyncio
import contextlib
import logging
import random
import ssl
from typing import Any, Final

from aiomqtt import Client, MqttError, ProtocolVersion, Will
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.api.certificates import NO_PASSWORD, require_authority, require_pair
from agent.api.mqtt.backoff import Backoff
from agent.api.mqtt.commands import Gate
from agent.api.mqtt.inbox import Inbox
from agent.api.mqtt.link import Link
from agent.api.mqtt.messages import PAYLOAD_MAX_BYTES, Online
from agent.api.mqtt.orders import Orders
from agent.api.mqtt.session import AT_LEAST_ONCE, Bookmark, Session
from agent.api.mqtt.topics import Topics
from agent.clock import Clock, seconds
from agent.config import Mqtt, MqttTls
from agent.errors import BadInput
from agent.telemetry import logger

KEEPALIVE_S: Final = 15
"""A broker that is gone without a word is noticed, and a station without one is given up, after one and a half."""

ANSWER_S: Final = 10.0
"""For the broker to acknowledge anything."""

PACKET_MAX_BYTES: Final = 2 * PAYLOAD_MAX_BYTES
"""With its topic and properties. The broker does not send what is larger."""

NO_ANSWER: Final = "Operation timed out"
"""What aiomqtt says for everything that it waited for in vain."""

CLIENT_PREFIX: Final = "so-"


class Surface:
    """One station's presence on its broker."""

    def __init__(
        self,
        station: str,
        settings: Mqtt,
        link: Link,
        gate: Gate,
        clock: Clock,
        announcement: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        """`announcement`: a topic and what Home Assistant is to read there."""
        self._settings = settings
        self._station = station
        self._topics = Topics(station)
        self._link = link
        self._clock = clock
        self._announcement = announcement
        self._bookmark = Bookmark()
        self._backoff = Backoff(random.Random())  # noqa: S311 - spreading, not secrecy
        self._problem: str | None = None
        self.orders = Orders(self._topics, gate, link, clock) if settings.commands else None
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """For ever, until it is cancelled."""
        try:
            while True:
                began_ns = self._clock.now_ns()
                try:
                    await self._connection()
                except (MqttError, BadInput, OSError, ValueError) as error:
                    self._log(_why(error, self.connected.is_set()))
                finally:
                    was_up = self.connected.is_set()
                    self.connected.clear()
                lasted_s = seconds(self._clock.now_ns() - began_ns) if was_up else 0.0
                await asyncio.sleep(self._backoff.next_s(lasted_s))
        finally:
            if self.orders:
                await self.orders.close()

    async def _connection(self) -> None:
        # A new client for every try: one that failed may keep half of its old state.
        client = await self._client()
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(client)
            except BaseException:
                _abandon(client)
                raise
            session = Session(client, self._topics, self._link, self.orders, self._bookmark, self._clock)
            self.connected.set()
            self._problem = None
            logger.info("connected to the broker", host=self._settings.host, port=self._settings.port)
            await session.run(self._settings.telemetry_hz, self._announcement)

    async def _client(self) -> Client:
        """Reads certificates and password anew, so that a restart is not needed for them. Raises BadInput, OSError."""
        settings = self._settings
        password = settings.password_file.read_text("utf-8").strip() if settings.password_file else None
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = PACKET_MAX_BYTES
        return Client(
            settings.host,
            settings.port,
            username=settings.username,
            password=password,
            identifier=f"{CLIENT_PREFIX}{self._station}",
            protocol=ProtocolVersion.V5,
            # Nothing is kept for a station that is away: a command from then is not what anybody wants now.
            clean_start=True,
            properties=properties,
            will=Will(self._topics.online, Online(online=False).model_dump_json(), AT_LEAST_ONCE, retain=True),
            keepalive=KEEPALIVE_S,
            timeout=ANSWER_S,
            tls_context=await asyncio.to_thread(context, settings.tls) if settings.tls else None,
            queue_type=Inbox,
            logger=LIBRARY,
        )

    def _log(self, problem: str) -> None:
        """Once for every kind of problem, not for every try: a broker may be away for weeks."""
        if problem != self._problem:
            logger.warning("not connected to the broker, trying again", host=self._settings.host, problem=problem)
            self._problem = problem


LIBRARY: Final = logging.getLogger("agent.mqtt.library")
"""Says the same as we do, and once more for every message that a full inbox discards."""
LIBRARY.setLevel(logging.CRITICAL)


def context(tls: MqttTls) -> ssl.SSLContext:
    """Trusts the fleet's own authority alone. Raises BadInput, with the file's name, for one that cannot be used."""
    try:
        made = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(tls.ca))
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls.cert:
            made.load_cert_chain(tls.cert, tls.key, password=NO_PASSWORD)
    except OSError:  # which does not say of what file
        require_authority(tls.ca)
        if tls.cert and tls.key:
            require_pair(tls.cert, tls.key)
        raise
    return made


def _abandon(client: Client) -> None:
    """Close what a try that failed has opened: aiomqtt 2.5 leaves the connection of one that timed out to itself."""
    client._connected = asyncio.get_running_loop().create_future()  # its callbacks would trip over a cancelled one
    client._client.disconnect()


def _why(error: Exception, was_connected: bool) -> str:
    match error:
        case MqttConnectError():
            return f"the broker refused: {error}"
        case MqttError() if str(error) == NO_ANSWER and not was_connected:
            # With TLS 1.3 a broker that dislikes a certificate hangs up after the handshake, without a word of MQTT.
            return "the broker did not answer; does it accept this station's certificate?"
        case _:
            return str(error) or type(error).__name__
