"""What is published and taken while one connection to the broker lasts."""

import asyncio
import contextlib
import json
import random
from typing import Any, Final

from aiomqtt import Client, MqttError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions
from pydantic import BaseModel, ValidationError

from agent import __version__
from agent.api.mqtt.link import Link
from agent.api.mqtt.messages import MESSAGE_MAX_BYTES, REASON_MAX_CHARS, Event, Online, State, stamp
from agent.api.mqtt.orders import Answer, Orders
from agent.api.mqtt.topics import Topics
from agent.api.schemas import Status
from agent.clock import Clock
from agent.errors import AgentError
from agent.telemetry import logger

STATE_EVERY_S: Final = 1.0
"""How often the station is asked, and the shortest time between two states."""

STATUS_ANSWER_S: Final = 3.0

ANSWER_LIFE_S: Final = 300
"""An answer that reaches nobody for this long is dropped by the broker."""

ANSWERS_AT_ONCE: Final = 16
"""On their way to the broker, whose acknowledgement may take a tenth of a second each."""

EVENT_LIFE_S: Final = 86_400

ECHO_S: Final = 5.0

FAREWELL_S: Final = 1.0
"""The supervisor waits 3 s for this process to end."""

AT_LEAST_ONCE: Final = 1


class Bookmark:
    """What outlives a connection: the last event that the broker has."""

    def __init__(self) -> None:
        self.event = 0


class Session:
    """One connection. `run` ends with MqttError when it breaks, and says goodbye when it is cancelled."""

    def __init__(
        self, client: Client, topics: Topics, link: Link, orders: Orders | None, bookmark: Bookmark, clock: Clock
    ) -> None:
        """`orders` None: this station only publishes."""
        self._client = client
        self._topics = topics
        self._link = link
        self._orders = orders
        self._bookmark = bookmark
        self._clock = clock
        self._changed = asyncio.Event()
        self._echo = asyncio.Event()

    async def run(self, telemetry_hz: float, announcement: tuple[str, dict[str, Any]] | None = None) -> None:
        """`announcement`: a topic and what Home Assistant wants to read there."""
        try:
            await self._begin(announcement)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._take(), name="mqtt messages")
                group.create_task(self._look_for_the_echo(), name="mqtt echo")
                group.create_task(self._states(), name="mqtt state")
                group.create_task(self._events(), name="mqtt events")
                if telemetry_hz:
                    group.create_task(self._telemetry(1 / telemetry_hz), name="mqtt telemetry")
                if self._orders:
                    group.create_task(self._answers(self._orders), name="mqtt answers")
        except ExceptionGroup as group_of_errors:
            _, others = group_of_errors.split(MqttError)
            raise (others or MqttError(_first(group_of_errors))) from None
        except asyncio.CancelledError:
            await self._farewell()
            raise

    async def _begin(self, announcement: tuple[str, dict[str, Any]] | None) -> None:
        # In this order: who hears that the station is there may send a command at once.
        if self._orders:
            await self._client.subscribe(
                self._topics.commands, options=SubscribeOptions(AT_LEAST_ONCE, retainAsPublished=True)
            )
        await self._client.subscribe(
            self._topics.online,
            options=SubscribeOptions(AT_LEAST_ONCE, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND),
        )
        if announcement:
            topic, description = announcement
            await self._client.publish(topic, json.dumps(description), qos=AT_LEAST_ONCE, retain=True)
        await self._publish(self._topics.online, Online(online=True, at=self._now(), version=__version__), retain=True)

    async def _take(self) -> None:
        async for message in self._client.messages:
            if message.topic.value == self._topics.online:
                self._echo.set()
            elif self._orders:
                self._orders.take(message)

    async def _look_for_the_echo(self) -> None:
        """A broker drops what its access list forbids without a word: only what comes back was really published."""
        try:
            await asyncio.wait_for(self._echo.wait(), ECHO_S)
        except TimeoutError:
            logger.warning(
                "the broker drops what this station says; does its access list know the station by this name?",
                topic=self._topics.online,
            )

    async def _answers(self, orders: Orders) -> None:
        while True:
            async with asyncio.TaskGroup() as group:
                for answer in await orders.outbox.some(ANSWERS_AT_ONCE):
                    group.create_task(self._answer(orders, answer))

    async def _answer(self, orders: Orders, answer: Answer) -> None:
        properties = _properties(ANSWER_LIFE_S)
        if answer.correlation is not None:
            properties.CorrelationData = answer.correlation
        await self._publish(answer.topic, answer.ack, properties=properties)
        orders.outbox.done(answer)

    async def _states(self) -> None:
        published: State | None = None
        while True:
            self._changed.clear()
            state = await self._state()
            if published is None or state.model_copy(update={"at": published.at}) != published:
                await self._publish(self._topics.state, state, retain=True)
                published = state
                await asyncio.sleep(STATE_EVERY_S)
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), STATE_EVERY_S)

    async def _state(self) -> State:
        at = self._now()
        try:
            return State.of(Status.model_validate(await self._link.call("status", {}, STATUS_ANSWER_S)), at)
        except AgentError as error:
            return State(at=at, reachable=False, reason=error.message[:REASON_MAX_CHARS])
        except ValidationError as error:
            logger.error("the agent's status is not what it should be", problem=str(error))
            return State(at=at, reachable=False, reason="The agent's status cannot be read: it has another version.")

    async def _events(self) -> None:
        lost = 0
        async with contextlib.aclosing(self._link.events(self._bookmark.event)) as events:
            async for told in events:
                lost += told.get("lost", 0)
                if event := told.get("event"):
                    self._changed.set()
                    message = Event(**event, lost=lost)
                    if len(message.model_dump_json()) > MESSAGE_MAX_BYTES:  # the results of a session of thousands
                        message = message.model_copy(update={"data": {}})
                    await self._publish(self._topics.event, message, properties=_properties(EVENT_LIFE_S))
                    self._bookmark.event, lost = event["seq"], 0
                elif "running" in told:
                    self._changed.set()

    async def _telemetry(self, period_s: float) -> None:
        # A fleet that was cut off at once must not publish at once for ever after.
        await asyncio.sleep(random.uniform(0, period_s))  # noqa: S311 - spreading, not secrecy
        while True:
            if numbers := self._link.telemetry():
                await self._client.publish(self._topics.telemetry, numbers.model_dump_json(), qos=0)
            await asyncio.sleep(period_s)

    async def _publish(
        self, topic: str, message: BaseModel, retain: bool = False, properties: Properties | None = None
    ) -> None:
        await self._client.publish(
            topic, message.model_dump_json(), qos=AT_LEAST_ONCE, retain=retain, properties=properties
        )

    async def _farewell(self) -> None:
        """The broker sends the last will only of those that do not say goodbye."""
        message = Online(online=False, at=self._now(), version=__version__, reason="the agent was stopped")
        with contextlib.suppress(MqttError, TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await self._publish(self._topics.online, message, retain=True)

    def _now(self) -> str:
        return stamp(self._clock.wall_s())


def _properties(life_s: int) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.MessageExpiryInterval = life_s
    return properties


def _first(group: BaseExceptionGroup) -> str:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else str(first)
