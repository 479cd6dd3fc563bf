"""From a message to what became of it: every command is answered, none waits behind another for long."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from aiomqtt import Message

from agent.api.mqtt import recording
from agent.api.mqtt.commands import VERBS, Gate, Kind, Order, Reason, Refusal, identity
from agent.api.mqtt.link import Link
from agent.api.mqtt.messages import MESSAGE_MAX_BYTES, Ack, stamp
from agent.api.mqtt.places import Places
from agent.api.mqtt.topics import Topics
from agent.clock import Clock, nanoseconds
from agent.errors import AgentError
from agent.telemetry import logger

RUNNING_MAX: Final = 8
"""Commands under way at once. A task may load its policy for minutes; a stop has places of its own."""

STOPS_MAX: Final = 4

COMMANDS_A_SECOND: Final = 20.0
"""A desk renews its lease four times a second and looks at the status; the daemon takes a millisecond for each."""

STOPS_A_SECOND: Final = 5.0
"""Who presses faster has stopped the arm already."""

ACKS_MAX: Final = 256
"""Answers that wait for the broker. Beyond that the oldest refusal goes, then the oldest."""

CORRELATION_MAX_BYTES: Final = 128

SILENCE_S: Final = 60.0
"""Between two signs of life of a verb: a commit of a long episode on a slow disk says nothing for a while."""

STOP_ANSWER_S: Final = 5.0

PROGRESS_EVERY_S: Final = 1.0
LOG_EVERY_S: Final = 1.0

QUIET: Final = ("status", "lease.renew")
"""They come all the time, and change nothing."""


@dataclass(frozen=True)
class Answer:
    """An ack and where it goes."""

    topic: str
    correlation: bytes | None
    ack: Ack


class Outbox:
    """Answers on their way to the broker, in order; kept while there is none."""

    def __init__(self) -> None:
        self._waiting: deque[Answer] = deque()
        self._there = asyncio.Event()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, answer: Answer) -> None:
        if len(self._waiting) >= ACKS_MAX:
            self.dropped += 1
            refused = next((one for one in self._waiting if one.ack.status == "refused"), self._waiting[0])
            self._waiting.remove(refused)
        self._waiting.append(answer)
        self._there.set()

    async def some(self, most: int) -> list[Answer]:
        """The oldest, which stay until they are `done`: a connection may break while they are sent."""
        while not self._waiting:
            self._there.clear()
            await self._there.wait()
        return list(islice(self._waiting, most))

    def done(self, answer: Answer) -> None:
        with contextlib.suppress(ValueError):  # it had to make room meanwhile
            self._waiting.remove(answer)


class Orders:
    """Takes messages from the command topics, and carries out what passes the gate."""

    def __init__(self, topics: Topics, gate: Gate, link: Link, clock: Clock) -> None:
        self._topics = topics
        self._gate = gate
        self._link = link
        self._clock = clock
        self._places = {
            "": Places(clock, RUNNING_MAX, COMMANDS_A_SECOND),
            **{verb: Places(clock, STOPS_MAX, STOPS_A_SECOND) for verb, kind in VERBS.items() if kind is Kind.STOP},
        }
        self._logged_ns: int | None = None
        self._unlogged = 0
        self.outbox = Outbox()

    def take(self, message: Message) -> None:
        """Never raises for what came in, and never waits."""
        verb = self._topics.verb(message.topic.value)
        address = self._address(message)
        payload = message.payload if isinstance(message.payload, bytes) else b""
        # A stop has places of its own, an e-stop and a hold apart: a daemon that hangs keeps holds waiting.
        places = self._places.get(verb, self._places[""])
        try:
            if places.full:
                raise Refusal(Reason.BUSY, "Too many commands at once.", "Wait for their answers.", identity(payload))
            order = self._gate.examine(verb, payload, message.retain)
        except Refusal as refusal:
            self._refuse(verb, address, refusal)
            return
        work = self._stop if order.kind is Kind.STOP else self._carry_out
        places.begin(work(order, address), f"{order.verb} {order.id}")

    async def close(self) -> None:
        """Cancel what is under way; the daemon goes on with what it has begun."""
        for places in self._places.values():
            await places.close()

    async def _carry_out(self, order: Order, address: tuple[str, bytes | None]) -> None:
        told_ns = self._clock.now_ns()

        async def progress(event: dict[str, Any]) -> None:
            nonlocal told_ns
            if self._clock.now_ns() - told_ns >= nanoseconds(PROGRESS_EVERY_S):
                told_ns = self._clock.now_ns()
                self._answer(
                    address, Ack(id=order.id, verb=order.verb, status="progress", at=self._now(), result=event)
                )

        async def work() -> dict[str, Any]:
            await self._gate.remember(order)
            if order.verb == "record":
                return await recording.switch(self._link, order.args)
            return await self._link.call(order.verb, order.args, SILENCE_S, progress)

        await self._attempt(order, address, work())

    async def _stop(self, order: Order, address: tuple[str, bytes | None]) -> None:
        """At once; remembered afterwards, so that a disk that is full or slow is no reason not to stop."""
        if order.verb == "estop":
            work = self._link.estop(str(order.args["cause"]))
        else:
            work = self._link.call(order.verb, order.args, STOP_ANSWER_S)
        await self._attempt(order, address, work)
        try:
            await self._gate.remember(order)
        except Refusal as refusal:
            logger.warning("a stop was carried out and not remembered", id=order.id, problem=refusal.message)

    async def _attempt(
        self, order: Order, address: tuple[str, bytes | None], work: Coroutine[Any, Any, dict[str, Any]]
    ) -> None:
        """Do it, and answer whatever comes of it."""
        try:
            result = await work
        except Refusal as refusal:
            self._refuse(order.verb, address, refusal)
        except AgentError as error:
            self._fail(order, address, error)
        except Exception as error:  # noqa: BLE001 - the edge of this surface: one bad command must not go unanswered
            logger.exception("command failed", verb=order.verb, id=order.id)
            self._fail(order, address, AgentError(f"The agent failed on this command: {error!r}.", "See its log."))
        else:
            self._done(order, address, result)

    def _address(self, message: Message) -> tuple[str, bytes | None]:
        """Where the answer goes: the response topic if it is one of this station's, else `ack`."""
        topic = getattr(message.properties, "ResponseTopic", None)
        correlation = getattr(message.properties, "CorrelationData", None)
        if not isinstance(correlation, bytes) or len(correlation) > CORRELATION_MAX_BYTES:
            correlation = None
        if not isinstance(topic, str) or not self._topics.may_answer_on(topic):
            topic = self._topics.ack
        return topic, correlation

    def _refuse(self, verb: str, address: tuple[str, bytes | None], refusal: Refusal) -> None:
        self._log_refusal(verb[:40], refusal)
        self._answer(
            address,
            Ack(
                id=refusal.id, verb=verb[:40], status="refused", at=self._now(),
                code=refusal.reason, message=refusal.message, hint=refusal.hint,
            ),
        )  # fmt: skip

    def _log_refusal(self, verb: str, refusal: Refusal) -> None:
        """One line a second: who floods the station must not flood its log too."""
        self._unlogged += 1
        if self._logged_ns is None or self._clock.now_ns() - self._logged_ns >= nanoseconds(LOG_EVERY_S):
            logger.info(
                "command refused", verb=verb, id=refusal.id, reason=refusal.reason, problem=refusal.message,
                refused_since_last_line=self._unlogged,
            )  # fmt: skip
            self._logged_ns, self._unlogged = self._clock.now_ns(), 0

    def _fail(self, order: Order, address: tuple[str, bytes | None], error: AgentError) -> None:
        logger.info("command refused by the agent", verb=order.verb, id=order.id, problem=error.message)
        self._answer(
            address,
            Ack(
                id=order.id, verb=order.verb, status="refused", at=self._now(),
                code=error.code, message=error.message, hint=error.hint,
            ),
        )  # fmt: skip

    def _done(self, order: Order, address: tuple[str, bytes | None], result: dict[str, Any]) -> None:
        if order.verb not in QUIET:
            logger.info("command carried out", verb=order.verb, id=order.id)
        ack = Ack(id=order.id, verb=order.verb, status="done", at=self._now(), result=result)
        if len(ack.model_dump_json()) > MESSAGE_MAX_BYTES:
            hint = "It was carried out; ask for it over HTTP or on the station's command line."
            ack = ack.model_copy(
                update={"result": None, "message": "The answer is too long for a broker.", "hint": hint}
            )
        self._answer(address, ack)

    def _answer(self, address: tuple[str, bytes | None], ack: Ack) -> None:
        self.outbox.put(Answer(*address, ack))

    def _now(self) -> str:
        return stamp(self._clock.wall_s())
