"""How rounds go on the server: bounded, checked, kept, and going on after a crash. Stations are functions here, which
get and give the messages that Flower would carry."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from agent.errors import BadInput, Fatal
from agent.fl.adapter import open_adapter
from agent.fl.compression import encode, from_wire
from agent.fl.exchange import Decline, read_terms
from agent.fl.layout import Layout
from agent.fl.run_folder import RunFolder
from agent.fl.server_app import main as serve
from agent.fl.settings import Aggregation, Compression
from agent.fl.statistics import of_policy
from agent.fl.strategy import flower, wait_for_nodes
from agent.inference.bundle import Bundle
from tests.fl.app.conftest import settings, values

type Station = Callable[[Message], Message | None]


class Fleet:
    """A grid of stations, by node id. A station that returns None does not reply."""

    def __init__(self, stations: dict[int, Station]) -> None:
        self.stations = stations
        self.sent: list[Message] = []
        self.timeouts: list[float | None] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.stations)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Sequence[Message]:
        messages = list(messages)
        self.sent += messages
        self.timeouts.append(timeout)
        replies = [self.stations[each.metadata.dst_node_id](each) for each in messages]
        return [reply for reply in replies if reply is not None]


def learner(
    shift: float, rows: float = 12.0, loss: float = 1.0, how: Compression = Compression.NONE, **metrics: float
) -> Station:
    """A station whose training adds the same number to all weights, and whose loss is the mean of what it is given."""

    def station(message: Message) -> Message:
        given = {name: array.numpy().astype(np.float32) for name, array in arrays_of(message).items()}
        if message.metadata.message_type == "evaluate":
            level = float(np.mean([value.mean() for value in given.values()]))
            told = {"num-examples": rows, "held-out-loss": level, "seconds": 0.1}
            return Message(RecordDict({"metrics": MetricRecord(told)}), reply_to=message)
        change = encode({name: np.full_like(value, shift) for name, value in given.items()}, how, 0.1)
        told = {
            "num-examples": rows, "steps": 3.0, "asked": 3.0, "train-loss": loss, "preempted": 0.0, "seconds": 1.0,
            "epsilon": 0.0, **{name.replace("_", "-"): value for name, value in metrics.items()},
        }  # fmt: skip
        record = ArrayRecord({name: Array(value) for name, value in change.items()})
        return Message(RecordDict({"arrays": record, "metrics": MetricRecord(told)}), reply_to=message)

    return station


def arrays_of(message: Message) -> ArrayRecord:
    return message.content.array_records["arrays"]


def busy(message: Message) -> Message:
    return Message(Error(code=int(Decline.BUSY), reason=Decline.BUSY.sentence), reply_to=message)


def silent(message: Message) -> None:
    return None


def spoilt(spoil: Callable[[RecordDict], object]) -> Station:
    def station(message: Message) -> Message:
        reply = learner(1.0)(message)
        if message.metadata.message_type == "train":
            spoil(reply.content)
        return reply

    return station


def run(fleet: Fleet, base: Bundle, output: Path, **changes: Any) -> RunFolder:
    """A whole run of the ServerApp."""
    config = values(
        **{"policy": str(base.folder), "output": str(output), "num_server_rounds": 2, "min_available_nodes": 1,
           "node_timeout_s": 0.0, **changes}
    )  # fmt: skip
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)
    serve(fleet, context)  # type: ignore[arg-type]
    return RunFolder(output / str(config["name"]))


def shifts(folder: RunFolder, base: Bundle, plan: Layout) -> dict[int, float]:
    """What the rounds added to the weights that they began with, the same everywhere."""
    found = {}
    begun = open_adapter(folder.folder / "rounds" / "000000" / "adapter").arrays()
    for each in folder.rounds():
        path = folder.folder / "rounds" / f"{each.round:06d}" / "adapter"
        if path.exists():
            differences = [value - begun[name] for name, value in open_adapter(path).arrays().items()]
            everything = np.concatenate([value.ravel() for value in differences])
            assert everything.std() < 1e-4
            found[each.round] = round(float(everything.mean()), 5)
    return found


def test_rounds_are_averaged_by_rows_in_fp32_and_kept(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    fleet = Fleet({5: learner(0.1, rows=12), 9: learner(0.4, rows=4, loss=3.0)})
    folder = run(fleet, base, tmp_path)
    mean = (0.1 * 12 + 0.4 * 4) / 16
    assert shifts(folder, base, plan) == {
        0: 0.0,
        1: pytest.approx(mean, abs=1e-4),
        2: pytest.approx(2 * mean, abs=2e-4),
    }
    first, second = folder.rounds()[1:]
    assert (first.asked, first.used, first.rows, first.steps) == (2, 2, 16, 6)
    assert first.train_loss == pytest.approx((12 + 3 * 4) / 16)
    assert second.held_out_loss is not None
    assert first.bytes_to_station == first.bytes_from_station == plan.bytes_a_round
    kept = folder.last()
    assert kept.manifest.round == 2
    assert {value.dtype for value in kept.arrays().values()} == {np.dtype(np.float32)}
    assert (folder.folder / "curve.png").stat().st_size > 10_000
    # Small changes are not lost against large weights, as they would be if weights were sent in fp16.
    tiny = run(Fleet({5: learner(1e-5)}), base, tmp_path / "tiny")
    assert shifts(tiny, base, plan)[2] == pytest.approx(2e-5, rel=0.1)


def test_what_is_sent_is_fp16_with_the_terms_of_the_round(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    fleet = Fleet({5: learner(0.1)})
    run(fleet, base, tmp_path, strategy="fedprox", proximal_mu=0.7, round_timeout_s=30.0)
    kinds = [each.metadata.message_type for each in fleet.sent]
    assert kinds == ["evaluate", "train", "evaluate", "train", "evaluate"]
    for message in fleet.sent:
        assert set(message.content) == {"arrays", "config"}
        from_wire({name: array.numpy() for name, array in arrays_of(message).items()}, plan.arrays)
        assert message.metadata.ttl <= 90
    terms = [read_terms(each.content.config_records["config"]) for each in fleet.sent]
    assert [each.server_round for each in terms] == [0, 1, 1, 2, 2]
    assert [each.final for each in terms] == [False, False, False, False, True]
    assert [each.proximal_mu for each in terms] == [0, 0.7, 0, 0.7, 0]
    assert {each.policy_hash for each in terms} == {base.hash}
    assert all(each.statistics == of_policy(base) for each in terms)
    assert set(fleet.timeouts) == {30.0}


def test_a_round_goes_on_without_stations_that_are_busy_silent_broken_or_have_nothing(
    tmp_path: Path, base: Bundle, plan: Layout
) -> None:
    nan = np.full((8, 4), np.nan, np.float16)
    fleet = Fleet(
        {
            1: learner(0.2),
            2: lambda message: (busy if message.metadata.message_type == "train" else learner(0.0))(message),
            3: silent,
            4: spoilt(lambda content: content.pop("metrics")),
            5: spoilt(lambda content: arrays_first(content, nan)),
            6: spoilt(lambda content: content["metrics"].update({"secret": 1.0})),  # type: ignore[union-attr]
            7: spoilt(lambda content: content["metrics"].update({"num-examples": float("inf")})),  # type: ignore[union-attr]
            8: learner(100.0, rows=0.0),
            9: spoilt(lambda content: content["arrays"].clear()),  # type: ignore[union-attr]
            10: spoilt(lambda content: content.update({"frames": ArrayRecord()})),
        }
    )
    folder = run(fleet, base, tmp_path, num_server_rounds=1)
    (round_,) = folder.rounds()[1:]
    assert shifts(folder, base, plan)[1] == pytest.approx(0.2, abs=1e-4)
    assert (round_.asked, round_.used, round_.silent, round_.declined) == (10, 1, 1, {"busy": 1})
    assert round_.broken == 6


def arrays_first(content: RecordDict, value: np.ndarray[Any, Any]) -> None:
    record = content.array_records["arrays"]
    name = next(iter(record))
    record[name] = Array(np.resize(value, record[name].shape).astype(np.float16))


def test_no_station_has_more_weight_than_its_steps_allow(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    fleet = Fleet({1: learner(0.0, rows=12), 2: learner(1.0, rows=1e9)})
    assert shifts(run(fleet, base, tmp_path, num_server_rounds=1), base, plan)[1] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("strategy", ["fedmedian", "trimmed-mean"])
def test_one_station_that_went_mad_shifts_no_robust_mean(
    tmp_path: Path, base: Bundle, plan: Layout, strategy: str
) -> None:
    fleet = Fleet({number: learner(0.1) for number in range(4)} | {9: learner(500.0)})
    assert shifts(run(fleet, base, tmp_path, num_server_rounds=1, strategy=strategy), base, plan)[1] == pytest.approx(
        0.1, abs=1e-3
    )


@pytest.mark.parametrize("how", [Compression.INT8, Compression.TOP_K])
def test_compressed_changes_are_read_as_they_were_written(
    tmp_path: Path, base: Bundle, plan: Layout, how: Compression
) -> None:
    folder = run(Fleet({1: learner(0.1, how=how)}), base, tmp_path, num_server_rounds=1, compression=str(how))
    begun, learnt = (
        open_adapter(folder.folder / "rounds" / name / "adapter").arrays() for name in ("000000", "000001")
    )
    moved = np.concatenate([(learnt[name] - begun[name]).ravel() for name in plan.arrays])
    share = 1.0 if how is Compression.INT8 else 0.1
    assert (np.abs(moved) > 0.05).mean() == pytest.approx(share, abs=0.02)
    assert folder.rounds()[1].bytes_from_station < plan.bytes_a_round


def test_when_nobody_has_anything_the_run_is_given_up_and_can_go_on(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    fleet = Fleet({1: busy, 2: silent})
    with pytest.raises(Fatal, match=r"2 rounds in a row changed nothing: 1 of 2 nodes were asked, 1 did not reply"):
        run(fleet, base, tmp_path, num_server_rounds=9, max_empty_rounds=2)
    folder = run(Fleet({1: learner(0.1)}), base, tmp_path, num_server_rounds=2, max_empty_rounds=2)
    assert shifts(folder, base, plan)[2] == pytest.approx(0.2, abs=1e-3)


def test_a_station_whose_arm_is_needed_is_not_asked_again_before_it_has_gone(
    tmp_path: Path, base: Bundle, plan: Layout
) -> None:
    """It has answered, still seems to be online, and what it were sent now would be lost with its goodbye."""
    fleet = Fleet({1: learner(0.1, preempted=1.0), 2: learner(0.1), 3: busy})
    folder = run(fleet, base, tmp_path, num_server_rounds=2)
    asked = [each.metadata.dst_node_id for each in fleet.sent if each.metadata.message_type == "train"]
    assert sorted(asked) == [1, 2, 2]  # 3 had said so when it was to judge what the run begins with
    assert (folder.rounds()[1].online, folder.rounds()[1].partial) == (3, 1)
    timed = Fleet({1: learner(0.1, preempted=1.0)})
    run(timed, base, tmp_path / "timed", num_server_rounds=2, local_seconds=5.0)
    assert sum(each.metadata.message_type == "train" for each in timed.sent) == 2


def test_who_is_leaving_is_waited_for_like_one_who_is_away() -> None:
    clock, fleet = Clock(), Fleet({7: busy, 3: busy})
    wish = settings(node_timeout_s=30.0, min_available_nodes=2)
    assert wait_for_nodes(fleet, wish, clock, clock.sleep, {3: 15.0}) == [3, 7]  # type: ignore[arg-type]
    assert 15 <= clock.now <= 16
    assert wait_for_nodes(fleet, wish, clock, clock.sleep, {3: 99.0}) == [3, 7]  # type: ignore[arg-type]
    assert 45 <= clock.now <= 47  # after that whoever seems to be there is asked


def test_an_empty_round_changes_nothing_and_the_next_one_does(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    turns = iter([busy, learner(0.1)])

    def station(message: Message) -> Message:
        return (next(turns) if message.metadata.message_type == "train" else learner(0.0))(message)

    folder = run(Fleet({1: station}), base, tmp_path)
    assert [each.used for each in folder.rounds()] == [0, 0, 1]
    assert shifts(folder, base, plan) == {0: 0.0, 2: pytest.approx(0.1, abs=1e-3)}


def test_a_station_that_went_mad_for_good_neither_ends_the_run_nor_keeps_others_from_learning(
    tmp_path: Path, base: Bundle, plan: Layout
) -> None:
    """What it adds can be sent, round after round; what it adds up to cannot."""
    folder = run(Fleet({1: learner(60_000.0)}), base, tmp_path / "alone")
    assert [(each.used, each.broken) for each in folder.rounds()] == [(0, 0), (1, 0), (0, 1)]
    folder = run(Fleet({1: learner(60_000.0), 2: learner(0.0)}), base, tmp_path / "two", num_server_rounds=3)
    assert [(each.used, each.broken) for each in folder.rounds()] == [(0, 0), (2, 0), (1, 1), (1, 1)]


def test_a_server_that_crashed_goes_on_after_the_last_round(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    """The crash is in round 3, after two were done; the run is what it would have been."""

    class Crash(Exception):
        pass

    def station(message: Message) -> Message:
        terms = read_terms(message.content.config_records["config"])
        if message.metadata.message_type == "train" and terms.server_round == 3 and not fixed:
            raise Crash
        return learner(0.1 * terms.server_round)(message)

    fixed: list[bool] = []
    with pytest.raises(Crash):
        run(Fleet({1: station}), base, tmp_path / "a", num_server_rounds=4, strategy="fedadam")
    assert RunFolder(tmp_path / "a" / "federated").last().manifest.round == 2
    fixed.append(True)
    went_on = Fleet({1: station})
    again = run(went_on, base, tmp_path / "a", num_server_rounds=4, strategy="fedadam")
    trained = [each for each in went_on.sent if each.metadata.message_type == "train"]
    assert [read_terms(each.content.config_records["config"]).server_round for each in trained] == [3, 4]
    whole = run(Fleet({1: station}), base, tmp_path / "b", num_server_rounds=4, strategy="fedadam")
    for name, value in whole.last().arrays().items():
        np.testing.assert_array_equal(again.last().arrays()[name], value)


def test_a_finished_run_is_offered_again_and_not_trained(tmp_path: Path, base: Bundle) -> None:
    run(Fleet({1: learner(0.1)}), base, tmp_path)
    fleet = Fleet({2: learner(0.1)})
    run(fleet, base, tmp_path)
    assert [each.metadata.message_type for each in fleet.sent] == ["evaluate"]
    assert read_terms(fleet.sent[0].content.config_records["config"]).final


def test_stations_that_were_away_get_the_last_adapter_when_they_come_back(tmp_path: Path, base: Bundle) -> None:
    late = iter([busy, busy])

    def away(message: Message) -> Message:
        if message.metadata.message_type == "evaluate":
            return next(late, learner(0.0))(message)
        return busy(message)

    fleet = Fleet({1: learner(0.1), 2: away})
    run(fleet, base, tmp_path, num_server_rounds=1, deliver_s=2.5, fraction_evaluate=0.0)
    offered = [each.metadata.dst_node_id for each in fleet.sent if each.metadata.message_type == "evaluate"]
    assert offered[:2] == [1, 2]
    assert set(offered[2:]) == {2}
    assert 1 <= len(offered[2:]) <= 3  # until it has it


@pytest.mark.parametrize(
    "changes", [{"adapter_rank": 8}, {"adapter_targets": "q_proj"}, {"method": "expert"}, {"statistics": "fleet"}]
)
def test_other_settings_under_the_same_name_are_refused(tmp_path: Path, base: Bundle, changes: dict[str, Any]) -> None:
    run(Fleet({1: learner(0.1)}), base, tmp_path, num_server_rounds=1)
    with pytest.raises(BadInput, match="The run federated was begun with another value of"):
        run(Fleet({1: learner(0.1)}), base, tmp_path, **changes)


def test_a_run_can_begin_with_the_adapter_of_another(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    first = run(Fleet({1: learner(0.1)}), base, tmp_path, num_server_rounds=1)
    folder = run(
        Fleet({1: learner(0.1)}), base, tmp_path, name="second", num_server_rounds=1,
        begin_with=str(first.last().folder),
    )  # fmt: skip
    begun = open_adapter(folder.folder / "rounds" / "000000" / "adapter").arrays()
    for name, value in first.last().arrays().items():
        np.testing.assert_array_equal(begun[name], value)
    with pytest.raises(BadInput, match="another shape"):
        run(Fleet({}), base, tmp_path, name="third", begin_with=str(first.last().folder), adapter_rank=8)


def test_statistics_of_the_fleet_travel_with_every_round(tmp_path: Path, base: Bundle) -> None:
    def tells(mean: float, count: float) -> Station:
        def station(message: Message) -> Message:
            if message.metadata.message_type != "query.statistics":
                return learner(0.1)(message)
            told: dict[str, Any] = {"count": [count]}
            for feature in ("observation.state", "action"):
                told |= {f"{feature}.mean": [mean] * 6, f"{feature}.m2": [count * 4.0] * 6}
            return Message(RecordDict({"metrics": MetricRecord(told)}), reply_to=message)

        return station

    fleet = Fleet({1: tells(10.0, 300.0), 2: tells(20.0, 100.0), 3: busy, 4: spoilt(lambda content: content.clear())})
    fleet.stations[4] = lambda message: Message(RecordDict({"metrics": MetricRecord({"count": 1e9})}), reply_to=message)
    folder = run(fleet, base, tmp_path, statistics="fleet", num_server_rounds=1)
    common = folder.common()
    assert common is not None
    assert common.statistics["action.mean"] == [12.5] * 6
    np.testing.assert_allclose(common.statistics["action.std"], np.sqrt(4 + 75 / 4))
    assert folder.last().manifest.statistics == common.statistics
    trained = [each for each in fleet.sent if each.metadata.message_type == "train"]
    assert read_terms(trained[0].content.config_records["config"]).statistics == common.statistics


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_waiting_for_nodes_ends(tmp_path: Path) -> None:
    clock, fleet = Clock(), Fleet({})
    assert wait_for_nodes(fleet, settings(node_timeout_s=30.0), clock, clock.sleep) == []  # type: ignore[arg-type]
    assert 30 <= clock.now <= 32
    fleet.stations = {7: busy, 3: busy}
    clock.now = 0.0
    assert wait_for_nodes(fleet, settings(), clock, clock.sleep) == [3, 7]  # type: ignore[arg-type]
    assert clock.now == 0.0


def test_a_share_of_the_stations_is_asked_each_round_another(tmp_path: Path, base: Bundle) -> None:
    def chosen(folder: Path, **changes: Any) -> list[set[int]]:
        fleet = Fleet({number: learner(0.1) for number in range(20)})
        run(fleet, base, folder, fraction_fit=0.2, fraction_evaluate=0.0, num_server_rounds=3, **changes)
        found: dict[int, set[int]] = {}
        for each in fleet.sent:
            if each.metadata.message_type == "train":
                terms = read_terms(each.content.config_records["config"])
                found.setdefault(terms.server_round, set()).add(each.metadata.dst_node_id)
        return [found[number] for number in (1, 2, 3)]

    first = chosen(tmp_path / "a")
    assert [len(each) for each in first] == [4, 4, 4]
    assert first[0] != first[1]
    assert chosen(tmp_path / "b") == first
    assert chosen(tmp_path / "c", seed=1) != first


@pytest.mark.parametrize("strategy", list(Aggregation))
def test_flowers_strategies_ask_the_grid_for_nothing_but_nodes(strategy: Aggregation, plan: Layout) -> None:
    """Contract with flwr 1.42: `configure_train` samples from `get_node_ids`, and waits for nobody who is there."""

    class Grid:
        asked = 0

        def get_node_ids(self) -> list[int]:
            self.asked += 1
            return [4, 2]

    arrays = ArrayRecord({"a": Array(np.ones(3, np.float32))})
    grid = Grid()
    messages = list(flower(settings(strategy=str(strategy))).configure_train(1, arrays, ConfigRecord(), grid))  # type: ignore[arg-type]
    assert sorted(each.metadata.dst_node_id for each in messages) == [2, 4]
    assert grid.asked > 0


def test_fedadam_keeps_its_moments_where_they_are_looked_for() -> None:
    """Contract with flwr 1.42: `m_t` and `v_t`, dictionaries of arrays, None or empty before the first round."""
    inner: Any = flower(settings(strategy="fedadam"))
    assert not inner.m_t
    assert not inner.v_t
    arrays = ArrayRecord({"a": Array(np.zeros(3, np.float32))})

    class Grid:
        def get_node_ids(self) -> list[int]:
            return [1]

    (message,) = inner.configure_train(1, arrays, ConfigRecord(), Grid())
    content = RecordDict(
        {"arrays": ArrayRecord({"a": Array(np.ones(3, np.float32))}), "metrics": MetricRecord({"num-examples": 1.0})}
    )
    inner.aggregate_train(1, [Message(content, reply_to=message)])
    np.testing.assert_allclose(inner.m_t["a"], 0.1)
    np.testing.assert_allclose(inner.v_t["a"], 0.01)


def test_order_of_replies_does_not_matter(tmp_path: Path, base: Bundle, plan: Layout) -> None:
    stations = [learner(0.1 * number, rows=number + 1.0, loss=1.0 + number) for number in range(7)]
    one = run(Fleet(dict(enumerate(stations))), base, tmp_path / "a", num_server_rounds=1)
    other = run(Fleet(dict(enumerate(reversed(stations)))), base, tmp_path / "b", num_server_rounds=1)
    for name, value in one.last().arrays().items():
        np.testing.assert_array_equal(other.last().arrays()[name], value)
