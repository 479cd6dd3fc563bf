"""How rounds go: Flower's own strategies, with waits that end, replies that are checked, and rounds that are kept.

What Flower's (1.42) would do by themselves: wait for ever where too few nodes are online; divide by zero where nobody
has learnt anything; average in the type of the arrays; stop where two replies have different metrics; hand out a
message for hours after its round is over. Here a round needs one useful reply, and ends in bounded time without any.
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx, FedTrimmedAvg, Strategy
from numpy.typing import NDArray

from agent.errors import AgentError, BadInput, Fatal
from agent.fl.compression import bytes_of, decode, to_wire, travels
from agent.fl.exchange import (
    ARRAYS,
    CONFIG,
    JUDGED,
    METRICS,
    TRAINED,
    VERSION,
    WEIGHT,
    Decline,
    Terms,
    check_metrics,
)
from agent.fl.layout import Layout
from agent.fl.run_folder import Common, Round, RunFolder
from agent.fl.settings import Aggregation, Settings

LOG: Final = logging.getLogger("flwr")
"""What `flwr run --stream` shows."""

LOOK_EVERY_S: Final = 1.0
"""For nodes that come online."""

LEAVING_S: Final = 15.0
"""A station whose arm is needed answers, and says goodbye up to ten seconds later (leaving.py). What it is asked in
between would wait for nothing."""

SPARE_TTL_S: Final = 60.0
"""A message is valid for a little longer than its round: the clocks of stations differ."""

type Arrays = dict[str, NDArray[np.float32]]
type Sleep = Callable[[float], None]


def flower(settings: Settings) -> FedAvg:
    """Which of Flower's strategies aggregates. Who takes part is not left to it."""
    common: dict[str, Any] = {
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
        "weighted_by_key": WEIGHT,
        "arrayrecord_key": ARRAYS,
        "configrecord_key": CONFIG,
    }
    match settings.strategy:
        case Aggregation.FEDAVG:
            return FedAvg(**common)
        case Aggregation.FEDPROX:
            return FedProx(**common, proximal_mu=settings.proximal_mu)
        case Aggregation.FEDADAM:
            return FedAdam(
                **common,
                eta=settings.server_learning_rate,
                beta_1=settings.server_beta_1,
                beta_2=settings.server_beta_2,
                tau=settings.server_tau,
            )
        case Aggregation.FEDMEDIAN:
            return FedMedian(**common)
        case Aggregation.TRIMMED:
            return FedTrimmedAvg(**common, beta=settings.trim)


def wait_for_nodes(
    grid: Grid,
    settings: Settings,
    clock: Callable[[], float] = time.monotonic,
    sleep: Sleep = time.sleep,
    leaving: Mapping[int, float] = MappingProxyType({}),
) -> list[int]:
    """The nodes that are online and stay, as soon as they are enough; after `node-timeout-s` all that are online.

    `leaving`: nodes that have said so, and until when (by `clock`) they may still seem to be online.
    """
    until_s = clock() + settings.node_timeout_s
    while len(staying := _staying(grid, leaving, clock())) < settings.min_available_nodes:
        if clock() >= until_s:
            online = sorted(grid.get_node_ids())
            LOG.warning("%d of %d nodes are online; not waiting longer", len(online), settings.min_available_nodes)
            return online
        sleep(LOOK_EVERY_S)
    return staying


def _staying(grid: Grid, leaving: Mapping[int, float], now_s: float) -> list[int]:
    return [node for node in sorted(grid.get_node_ids()) if now_s >= leaving.get(node, now_s)]


class Rounds(Strategy):
    """For `Strategy.start`, which counts from 1: `done` rounds were done before."""

    def __init__(
        self,
        settings: Settings,
        common: Common,
        layout: Layout,
        folder: RunFolder,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self._settings, self._common, self._layout, self._folder, self._done = settings, common, layout, folder, done
        self._clock, self._sleep = clock, sleep
        self._inner = flower(settings)
        if done and isinstance(self._inner, FedAdam):
            _remind(self._inner, folder.memory(done))
        self._global: Arrays = {}
        # What is judged before the first round is the adapter of the last one that was done.
        self._round = next((each for each in folder.rounds() if each.round == done), Round(done))
        self._empty = 0
        self._began_s = 0.0
        self._leaving: dict[int, float] = {}  # nodes whose arm is needed, and until when they may seem to be online
        self._final = False  # what was offered last is what the run led to
        self.reached: set[int] = set()  # nodes that have it then

    def summary(self) -> None:
        settings = self._settings
        LOG.info(
            "%s of %s: %d numbers in %d arrays, %.2f MB a round each way; %s, %d steps of %d rows",
            settings.method, self._common.policy, self._layout.parameters, len(self._layout.arrays),
            self._layout.bytes_a_round / 1e6, settings.strategy, settings.local_steps, settings.batch_size,
        )  # fmt: skip

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        number = self._done + server_round
        self._round = Round(number, began_at=datetime.now(UTC).isoformat(timespec="seconds"))
        online = wait_for_nodes(grid, self._settings, self._clock, self._sleep, self._leaving)
        chosen = self._sample(online, self._settings.fraction_fit, number, "train")
        self._round.online, self._round.asked = len(list(grid.get_node_ids())), len(chosen)
        self._global = {name: array.numpy() for name, array in arrays.items()}
        if not chosen:
            return []
        wire = to_wire(self._global)
        self._round.bytes_to_station = bytes_of(wire)
        terms = ConfigRecord(self._terms(number, final=False).record())
        # The inner strategy adds what it wants stations to know, and remembers the arrays in full.
        messages = list(self._inner.configure_train(number, arrays, terms, cast(Grid, _Chosen(chosen))))
        content = RecordDict({ARRAYS: _record(wire), CONFIG: terms})
        self._began_s = self._clock()
        return [self._message(content, MessageType.TRAIN, each.metadata.dst_node_id) for each in messages]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        round_, replies = self._round, list(replies)
        round_.seconds = round(self._clock() - self._began_s, 3) if replies else 0.0
        good = self._checked(replies)
        round_.silent = round_.asked - len(replies)
        if len(good) < self._settings.min_replies:
            return self._nothing()
        arrays, metrics = self._inner.aggregate_train(round_.round, good)
        learnt = {name: array.numpy().astype(np.float32) for name, array in (arrays or {}).items()}
        if not learnt or not all(travels(value) for value in learnt.values()):
            return self._nothing()
        self._empty, round_.used = 0, len(good)
        self._folder.keep(self._common, self._settings, round_, learnt, _remembered(self._inner))
        return _record(learnt), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """After the last round, everyone gets the adapter."""
        number = self._done + server_round
        final = number >= self._settings.num_server_rounds
        staying = _staying(grid, self._leaving, self._clock())
        some = self._sample(staying, self._settings.fraction_evaluate, number, "evaluate")
        return self.offer(arrays, number, sorted(grid.get_node_ids()) if final else some)

    def offer(self, arrays: ArrayRecord, number: int, nodes: Sequence[int]) -> list[Message]:
        """The global adapter, to be judged, and kept where it is the last."""
        self._final = final = number >= self._settings.num_server_rounds
        wire = to_wire({name: array.numpy() for name, array in arrays.items()})
        content = RecordDict({ARRAYS: _record(wire), CONFIG: ConfigRecord(self._terms(number, final=final).record())})
        return [self._message(content, MessageType.EVALUATE, node) for node in nodes]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        found = []
        for reply in replies:
            if reply.has_error():
                LOG.info("node %d judges nothing: %s", reply.metadata.src_node_id, reply.error.reason)
                self._is_leaving(reply.metadata.src_node_id, reply.error.code == Decline.BUSY)
                continue
            try:
                metrics = check_metrics(_only(reply.content.metric_records, METRICS), JUDGED)
            except (AgentError, KeyError) as error:
                LOG.warning("node %d: %s", reply.metadata.src_node_id, error)
                continue
            if self._final:
                self.reached.add(reply.metadata.src_node_id)
            if metrics[WEIGHT] > 0:
                found.append((metrics[WEIGHT], metrics["held-out-loss"]))
        round_ = self._round
        if found:
            rows = sum(weight for weight, _ in found)
            round_.held_out_loss = sum(weight * loss for weight, loss in sorted(found)) / rows
            round_.held_out_rows, round_.judged_by = rows, len(found)
            LOG.info("round %d: held-out loss %.4f by %d stations", round_.round, round_.held_out_loss, len(found))
            self._folder.note(round_)
        self._folder.draw()
        return MetricRecord({"held-out-loss": round_.held_out_loss}) if round_.held_out_loss is not None else None

    def _sample(self, online: Sequence[int], fraction: float, number: int, what: str) -> list[int]:
        if not online or fraction == 0:
            return []
        count = min(len(online), max(1, self._settings.min_replies, round(fraction * len(online))))
        return random.Random(f"{self._settings.seed} {number} {what}").sample(online, count)  # noqa: S311

    def _message(self, content: RecordDict, kind: str, node: int) -> Message:
        return Message(content, node, kind, ttl=self._settings.round_timeout_s + SPARE_TTL_S)

    def _terms(self, number: int, final: bool) -> Terms:
        common, settings = self._common, self._settings
        return Terms(
            VERSION, settings.name, number, settings.num_server_rounds, final, common.policy, common.policy_hash,
            common.statistics,
        )  # fmt: skip

    def _checked(self, replies: Sequence[Message]) -> list[Message]:
        """Those with something to learn from, as weights in fp32, in an order that depends on what they say alone:
        sums of floats depend on it, and node ids are drawn anew for each simulation."""
        settings, round_ = self._settings, self._round
        good: list[tuple[tuple[float, float], Message]] = []
        losses, declined = [], Counter(round_.declined)
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                declined[_reason(reply.error.code)] += 1
                self._is_leaving(node, reply.error.code == Decline.BUSY)
                LOG.info("node %d does not take part: %s", node, reply.error.reason)
                continue
            try:
                metrics = check_metrics(_only(reply.content.metric_records, METRICS), TRAINED)
                arrays = _only(reply.content.array_records, ARRAYS)
                encoded = {name: array.numpy() for name, array in arrays.items()}
                change = decode(encoded, self._layout.arrays, settings.compression, settings.top_k)
                weights = {name: value + change[name] for name, value in self._global.items()}
                if not all(travels(value) for value in weights.values()):
                    raise BadInput("It would lead to an adapter that cannot be sent to anybody.")
            except (AgentError, KeyError, ValueError, TypeError, EOFError) as error:
                round_.broken += 1
                LOG.warning("the reply of node %d is not used: %s", node, error)
                continue
            # No station can have more weight than its steps allow, whatever it says.
            weight = min(metrics[WEIGHT], settings.local_steps * settings.batch_size)
            if weight <= 0:
                continue
            numbers = MetricRecord({WEIGHT: weight, "train-loss": metrics["train-loss"]})
            reply.content = RecordDict({ARRAYS: _record(weights), METRICS: numbers})
            good.append(((weight, metrics["train-loss"]), reply))
            round_.rows += weight
            round_.steps += metrics["steps"]
            round_.partial += metrics["preempted"] > 0
            # With local-seconds every station ends early.
            self._is_leaving(node, metrics["preempted"] > 0 and not settings.local_seconds)
            round_.bytes_from_station = max(round_.bytes_from_station, bytes_of(encoded))
            if metrics["epsilon"] > 0:
                round_.epsilon = max(round_.epsilon or 0.0, metrics["epsilon"])
            else:
                losses.append((weight, metrics["train-loss"]))
        round_.declined = dict(declined)
        if losses:
            round_.train_loss = sum(a * b for a, b in sorted(losses)) / sum(a for a, _ in losses)
        return [reply for _, reply in sorted(good, key=lambda item: item[0])]

    def _is_leaving(self, node: int, is_so: bool) -> None:
        if is_so:
            self._leaving[node] = self._clock() + LEAVING_S

    def _nothing(self) -> tuple[None, None]:
        """A round that changes nothing. Raises Fatal after too many of them."""
        self._empty += 1
        round_ = self._round
        self._folder.note(round_)
        LOG.warning("round %d changes nothing: nobody sent anything useful", round_.round)
        if self._empty >= self._settings.max_empty_rounds:
            raise Fatal(
                f"{self._empty} rounds in a row changed nothing: {round_.asked} of {round_.online} nodes were asked, "
                f"{round_.silent} did not reply, {round_.broken} made no sense, and declined have {round_.declined}.",
                "Are the stations enrolled, idle, and do they have the policy? Run it again to go on.",
            )
        return None, None


class _Chosen:
    """What an inner strategy sees of the grid: only the nodes that were chosen."""

    def __init__(self, nodes: Sequence[int]) -> None:
        self._nodes = nodes

    def get_node_ids(self) -> Iterable[int]:
        return list(self._nodes)


def _reason(code: int) -> str:
    return Decline(code).name.lower().replace("_", " ") if code in set(Decline) else f"error {code}"


def _only[T](records: Mapping[str, T], name: str) -> T:
    if list(records) != [name]:
        raise BadInput(f"The reply holds {', '.join(records) or 'nothing'} instead of {name}.")
    return records[name]


def _record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def _remembered(inner: FedAvg) -> Arrays:
    """The two moments of FedAdam, which Flower keeps in these attributes."""
    if not isinstance(inner, FedAdam):
        return {}
    found: Arrays = {}
    for letter, moments in (("m", inner.m_t), ("v", inner.v_t)):
        found |= {f"{letter}/{name}": np.asarray(value, np.float32) for name, value in (moments or {}).items()}
    return found


def _remind(inner: FedAdam, memory: Mapping[str, NDArray[np.float32]]) -> None:
    if memory:
        inner.m_t = {name[2:]: value for name, value in memory.items() if name.startswith("m/")}
        inner.v_t = {name[2:]: value for name, value in memory.items() if name.startswith("v/")}
