"""What every message passes on its way into and out of the app: Flower's mods, the outermost first.

declining     what a station does not take part in becomes an Error reply
compressing   the change of training becomes what travels (compression.py)
protecting    it is shortened and gets noise (privacy.py); without either, nothing happens here
"""

import contextlib
import logging
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, MessageType, MetricRecord
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from agent.errors import AgentError, Fatal
from agent.fl.brief import Privacy, Progress, read_brief, replace
from agent.fl.compression import decode, encode
from agent.fl.exchange import ARRAYS, CONFIG, METRICS, WEIGHT, Decline, Declined, read_terms
from agent.fl.privacy import Ledger, agreed, epsilon, mu_of, protect, true_dice
from agent.fl.settings import Compression, Settings, read_settings
from agent.fl.workplace import PARTITION

LOG: Final = logging.getLogger("flwr")

RESIDUAL: Final = "residual"
BOOK: Final = "privacy"
MU_SQUARED: Final = "mu-squared"

type Arrays = dict[str, NDArray[np.float32]]


def declining(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Of what went wrong the server learns the kind. Flower itself would send it the text of any exception, in which
    there are names of folders, datasets and tasks."""
    try:
        return call_next(message, context)
    except Declined as declined:
        code, reason = declined.code, declined.reason
    except AgentError as error:
        code, reason = Decline.NOT_AGREED, str(error)
    except Exception as error:  # the edge of the app: lerobot, torch and PyAV share no root
        LOG.exception("a %s message failed", message.metadata.message_type)
        code, reason = Decline.FAILED, f"{type(error).__name__}: {error}"
    LOG.warning("not taking part (%s): %s", code.name, reason)
    brief = read_brief()
    if brief is not None:
        with contextlib.suppress(OSError):  # a full disk, which may be what went wrong
            replace(Path(brief.progress), Progress("", 0, 0, f"declined: {reason}", 0, 0))
    return Message(Error(code=int(code), reason=code.sentence), reply_to=message)


def compressing(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    reply = call_next(message, context)
    if message.metadata.message_type != MessageType.TRAIN or reply.has_error():
        return reply
    settings = read_settings(context.run_config)
    change = arrays_of(reply)
    if settings.compression is not Compression.NONE and RESIDUAL in context.state:
        late = context.state.array_records[RESIDUAL]
        change = {name: value + late[name].numpy() for name, value in change.items()}
    encoded = encode(change, settings.compression, settings.top_k)
    if settings.compression is not Compression.NONE:
        shapes = {name: value.shape for name, value in change.items()}
        sent = decode(encoded, shapes, settings.compression, settings.top_k)
        context.state[RESIDUAL] = record_of({name: value - sent[name] for name, value in change.items()})
    reply.content[ARRAYS] = record_of(encoded)
    return reply


def protecting(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    if message.metadata.message_type != MessageType.TRAIN:
        return call_next(message, context)
    settings = read_settings(context.run_config)
    privacy = wanted_privacy(settings)
    if privacy is None or privacy.noise == 0:
        reply = call_next(message, context)
        if settings.privacy_clip and not reply.has_error():
            dice = np.random.default_rng(0)  # draws nothing: no noise
            reply.content[ARRAYS] = record_of(protect(arrays_of(reply), settings.privacy_clip, 0.0, dice))
        return reply
    terms = read_terms(message.content.config_records[CONFIG])
    book = _Book(context)
    mu = math.hypot(book.mu(), mu_of(privacy.noise))
    spent = epsilon(mu, privacy.delta)
    if privacy.max_epsilon is not None and spent > privacy.max_epsilon:
        raise Declined(
            Decline.SPENT, f"Another round would spend epsilon {spent:.3g}, of {privacy.max_epsilon:g} in all."
        )
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    change = protect(arrays_of(reply), privacy.clip, privacy.noise, _dice(settings, terms.server_round, context))
    book.spend(terms.run, terms.server_round, mu_of(privacy.noise))
    reply.content[ARRAYS] = record_of(change)
    old = reply.content.metric_records[METRICS]
    # What depends on the episodes is left out. Steps and rows a step do not: they depend on the run and the operator.
    reply.content[METRICS] = MetricRecord(
        {
            **old,
            WEIGHT: float(old["steps"]) * settings.batch_size,  # type: ignore[arg-type]
            "train-loss": 0.0,
            "seconds": 0.0,
            "epsilon": min(spent, 1e300),
        }
    )
    return reply


def wanted_privacy(settings: Settings) -> Privacy | None:
    brief = read_brief()
    return agreed(settings, brief.privacy if brief else None)


def arrays_of(message: Message) -> dict[str, NDArray[Any]]:
    return {name: array.numpy() for name, array in message.content.array_records[ARRAYS].items()}


def record_of(arrays: dict[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def _dice(settings: Settings, number: int, context: Context) -> np.random.Generator:
    """Of the operating system; in a simulation, where there is nothing to hide, of the seed."""
    if read_brief() is None and PARTITION in context.node_config:
        return np.random.default_rng([settings.seed, number, int(context.node_config[PARTITION]), 1])
    return true_dice()


class _Book:
    """What was spent: on a station over all runs, on its disk; in a simulation, during this run."""

    def __init__(self, context: Context) -> None:
        brief = read_brief()
        self._context = context
        if brief is not None and not brief.ledger:
            raise Fatal("This station has nowhere to write down what privacy is spent.", "Update the agent.")
        self._ledger = Ledger(Path(brief.ledger)) if brief else None

    def mu(self) -> float:
        if self._ledger:
            return self._ledger.mu()
        if BOOK not in self._context.state:
            return 0.0
        return math.sqrt(float(self._context.state.metric_records[BOOK][MU_SQUARED]))  # type: ignore[arg-type]

    def spend(self, run: str, number: int, mu: float) -> None:
        if self._ledger:
            self._ledger.spend(run, number, mu)
        else:
            self._context.state[BOOK] = MetricRecord({MU_SQUARED: self.mu() ** 2 + mu**2})
