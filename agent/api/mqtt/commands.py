"""Which commands are taken, and why the others are not. Nothing here talks to a broker or moves anything."""

import asyncio
import re
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from agent import lease
from agent.api import schemas
from agent.api.mqtt.messages import ID_PATTERN, PAYLOAD_MAX_BYTES, Command
from agent.api.mqtt.recording import RecordSwitch
from agent.api.mqtt.seen import Full, Seen
from agent.api.mqtt.timekeeping import Timekeeping
from agent.clock import Clock
from agent.telemetry import logger

SKEW_S: Final = 2.0
"""Two synchronised clocks differ by less, `timekeeping.MAX_ERROR_S` included."""

RECENT_IDS: Final = 1024
"""Remembered in memory alone, of commands for which repeating is no harm."""

TOKEN_PATTERN: Final = r"^[A-Za-z0-9_-]{1,64}$"  # noqa: S105 - the shape of one
"""As `secrets.token_urlsafe` makes them."""

PROBLEMS_MAX: Final = 5
SENTENCE_MAX_CHARS: Final = 500


class Kind(StrEnum):
    READ = "read"  # changes nothing, or only what the sender holds already
    STOP = "stop"  # makes the arm safer: must not fail for a formality
    CHANGE = "change"  # changes something, moves nothing
    MOVE = "move"  # the arm may move or drop because of it


VERBS: Final[dict[str, Kind]] = {
    "status": Kind.READ,
    "episodes.list": Kind.READ,
    "episodes.show": Kind.READ,
    "lease.renew": Kind.READ,
    "estop": Kind.STOP,
    "hold": Kind.STOP,
    "lease.take": Kind.CHANGE,
    "lease.release": Kind.CHANGE,
    "task.stop": Kind.CHANGE,
    "record": Kind.CHANGE,
    "record.start": Kind.CHANGE,
    "record.stop": Kind.CHANGE,
    "record.discard": Kind.CHANGE,
    "record.rerecord": Kind.CHANGE,
    "episodes.mark": Kind.CHANGE,
    "episodes.delete": Kind.CHANGE,
    "episodes.restore": Kind.CHANGE,
    "task.start": Kind.MOVE,
    "teleop.start": Kind.MOVE,
    "teleop.stop": Kind.MOVE,  # gives the arm back to a task
    "park": Kind.MOVE,
    "release": Kind.MOVE,
}
"""What may be asked over a broker: `agent.api.schemas.VERBS`, the lease, and recording as a switch. Not `reset`: that
is for whoever stands beside the arm."""


Token = Annotated[str, Field(pattern=TOKEN_PATTERN, description="What lease.take gave.")]


def _printable(text: str) -> str:
    if not (text.isprintable() and text.strip()):
        raise ValueError("use one line of printable text")
    return text


class LeaseTake(schemas.Request):
    owner: Annotated[
        str,
        Field(min_length=1, max_length=lease.OWNER_MAX_CHARS, description="Who takes control, for people to read."),
        AfterValidator(_printable),
    ]
    ttl_s: Annotated[
        float,
        Field(
            ge=lease.SHORTEST_S,
            le=lease.LONGEST_S,
            description="It ends after this, and the arm holds; unless renewed.",
        ),
    ]
    take_over: Annotated[bool, Field(description="Also from somebody who has control.")] = False


class LeaseToken(schemas.Request):
    token: Token


REQUESTS: Final[dict[str, type[schemas.Request]]] = {
    **{verb: about.request for verb, about in schemas.VERBS.items()},
    "lease.take": LeaseTake,
    "lease.renew": LeaseToken,
    "lease.release": LeaseToken,
    "record": RecordSwitch,
}

LIFE_S: Final[dict[Kind, float]] = {Kind.READ: 300.0, Kind.STOP: 300.0, Kind.CHANGE: 300.0, Kind.MOVE: 10.0}
"""The longest from issue to expiry. A motion that arrives later than ten seconds after it was meant may meet a hand."""


class Reason(StrEnum):
    """Codes of refusals that are made here. A daemon that refuses has codes of its own (agent/errors.py)."""

    MALFORMED = "malformed"
    UNKNOWN_VERB = "unknown-verb"
    RETAINED = "retained"
    REPEATED = "repeated"
    EXPIRED = "expired"
    NOT_YET = "not-yet"  # issued in the future
    LIVES_TOO_LONG = "lives-too-long"
    NO_CLOCK = "no-clock"
    NO_MEMORY = "no-memory"  # it could not be remembered on the disk
    BUSY = "busy"


class Refusal(Exception):
    """Why a command is not carried out."""

    def __init__(self, reason: Reason, message: str, hint: str = "", id: str | None = None) -> None:
        super().__init__(message)
        self.reason, self.message, self.hint, self.id = reason, message, hint, id


@dataclass(frozen=True)
class Order:
    """A command that may be carried out, once `Gate.remember` has returned."""

    id: str
    verb: str
    kind: Kind
    args: dict[str, Any]
    expires_s: float  # since the epoch
    judged: bool  # by a clock; a stop may not be


class Gate:
    """Every command passes here, in the order of arrival."""

    def __init__(self, clock: Clock, timekeeping: Timekeeping, seen: Seen) -> None:
        self._clock = clock
        self._timekeeping = timekeeping
        self._seen = seen
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._disk = asyncio.Lock()

    def examine(self, verb: str, payload: bytes, retained: bool) -> Order:
        """Take a command, so that it is not taken again. Raises Refusal."""
        kind = VERBS.get(verb)
        if kind is None:
            raise Refusal(
                Reason.UNKNOWN_VERB,
                f"This station takes no {verb[:40]!r} over a broker.",
                "See docs/mqtt.md.",
                identity(payload),
            )
        command = _read(payload)
        if retained:
            raise Refusal(
                Reason.RETAINED,
                "The command was retained: it would come again at every connection.",
                "Publish an empty retained message to this topic, then send the command without the flag.",
                command.id,
            )
        args = _arguments(verb, command)
        expires_s = command.expires_at.timestamp()
        judged = self._judge(kind, command)
        if command.id in self._recent or command.id in self._seen:
            raise Refusal(
                Reason.REPEATED,
                "A command with this id was taken already.",
                "Every command needs an id of its own.",
                command.id,
            )
        if kind is Kind.READ or not judged:
            self._recent[command.id] = None
            if len(self._recent) > RECENT_IDS:
                self._recent.popitem(last=False)
        else:
            self._note(kind, command.id, expires_s)
        return Order(command.id, verb, kind, args, expires_s, judged)

    def _judge(self, kind: Kind, command: Command) -> bool:
        """Whether the times of a command were compared with a clock that can be believed. Raises Refusal."""
        issued_s, expires_s = command.issued_at.timestamp(), command.expires_at.timestamp()
        if not 0 < expires_s - issued_s <= LIFE_S[kind]:
            raise Refusal(
                Reason.LIVES_TOO_LONG,
                f"From issue to expiry are {expires_s - issued_s:g} s; for this verb more than 0 and at most "
                f"{LIFE_S[kind]:g} s are allowed.",
                "Send it when it is meant.",
                command.id,
            )
        synchrony = self._timekeeping.synchrony
        if not synchrony.good:
            if kind in (Kind.READ, Kind.STOP):
                return False
            raise Refusal(
                Reason.NO_CLOCK,
                synchrony.reason,
                "Without a right clock nobody can say that a command is fresh.",
                command.id,
            )
        now_s = self._clock.wall_s()
        if issued_s > now_s + SKEW_S:
            raise Refusal(
                Reason.NOT_YET,
                f"It was issued {issued_s - now_s:.1f} s in the future.",
                "Synchronise the sender's clock.",
                command.id,
            )
        if expires_s <= now_s or (expires_s <= self._seen.floor and kind is not Kind.STOP):
            raise Refusal(
                Reason.EXPIRED,
                f"It expired {now_s - expires_s:.1f} s ago.",
                "Send it again if it is still meant.",
                command.id,
            )
        return True

    def _note(self, kind: Kind, command: str, expires_s: float) -> None:
        try:
            self._seen.note(command, expires_s, self._clock.wall_s())
        except Full:
            if kind is not Kind.STOP:
                raise Refusal(Reason.BUSY, "Too many commands in a short time.", "Send fewer.", command) from None

    async def remember(self, order: Order) -> None:
        """Have it on the disk, before it is carried out: a crash must not make it run twice. Raises Refusal.

        A stop is carried out first and remembered afterwards: it must not wait for a disk.
        """
        if order.kind is Kind.READ or not order.judged:
            return
        async with self._disk:
            try:
                await asyncio.to_thread(self._seen.keep, order.id)
            except OSError as error:
                logger.error("commands cannot be remembered", problem=str(error))
                raise Refusal(
                    Reason.NO_MEMORY,
                    f"The command could not be remembered, so it is not carried out: {error.strerror}.",
                    "Free disk space on the station.",
                    order.id,
                ) from error
        if order.kind is not Kind.STOP and self._clock.wall_s() >= order.expires_s:
            raise Refusal(
                Reason.EXPIRED, "It expired while it waited here.", "Send it again if it is still meant.", order.id
            )


def _read(payload: bytes) -> Command:
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise Refusal(Reason.MALFORMED, f"A command may hold {PAYLOAD_MAX_BYTES} bytes; this one has {len(payload)}.")
    try:
        return Command.model_validate_json(payload)
    except ValidationError as error:
        raise Refusal(
            Reason.MALFORMED, _sentence(error), "See docs/mqtt.md for an example.", identity(payload)
        ) from error


def _arguments(verb: str, command: Command) -> dict[str, Any]:
    """As `Station.handle` wants them. They have the models of the HTTP API; the lease stands beside them."""
    args = dict(command.args)
    token = args.pop("lease", None)
    if token is not None and not (isinstance(token, str) and re.fullmatch(TOKEN_PATTERN, token)):
        raise Refusal(Reason.MALFORMED, "args.lease: must be the token that lease.take gave.", id=command.id)
    try:
        request = REQUESTS[verb].model_validate(args)
    except ValidationError as error:
        raise Refusal(Reason.MALFORMED, _sentence(error, "args."), "See docs/mqtt.md.", command.id) from error
    return request.args() | ({"lease": token} if token is not None else {})


def identity(payload: bytes) -> str | None:
    """The id of a command that is otherwise wrong, for its sender to recognise."""
    try:
        return _Id.model_validate_json(payload).id if len(payload) <= PAYLOAD_MAX_BYTES else None
    except ValidationError:
        return None


class _Id(BaseModel):
    id: Annotated[str, Field(pattern=ID_PATTERN)]


def _sentence(error: ValidationError, prefix: str = "") -> str:
    """The first things that are wrong, each with its place. What was found is not repeated: it may be secret."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    parts = [
        f"{prefix}{'.'.join(str(part) for part in problem['loc']) or 'payload'}: {problem['msg']}"
        for problem in problems[:PROBLEMS_MAX]
    ]
    return f"{'; '.join(parts)}."[:SENTENCE_MAX_CHARS]
