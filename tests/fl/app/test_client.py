"""What a station does when it is asked, and what leaves it: adapters, counts and metrics, and nothing else."""

import json
import math
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from safetensors.torch import load_file

from agent.fl.adapter import open_adapter
from agent.fl.brief import Privacy, Progress
from agent.fl.client_app import app
from agent.fl.compression import decode, to_wire
from agent.fl.exchange import JUDGED, PRESENT, TRAINED, Decline
from agent.fl.layout import Layout, Shape, layout
from agent.fl.privacy import Ledger, epsilon, mu_of
from agent.fl.settings import Compression
from agent.inference.bundle import Bundle
from agent.inference.training.plan import Method
from agent.robot.recording.index import DatasetIndex
from tests.fl.app.conftest import ROWS, Station, asked


def content(station: Station, plan: Layout, seed: int = 0, **terms: Any) -> RecordDict:
    wire = to_wire(plan.begin(station.base, seed))
    arrays = ArrayRecord({name: Array(value) for name, value in wire.items()})
    return RecordDict({"arrays": arrays, "config": ConfigRecord(station.terms(**terms).record())})


def train(station: Station, plan: Layout, **terms: Any) -> Message:
    return app(asked("train", content(station, plan, **terms)), station.context)


def evaluate(station: Station, plan: Layout, **terms: Any) -> Message:
    return app(asked("evaluate", content(station, plan, **terms)), station.context)


def numbers(reply: Message) -> dict[str, Any]:
    assert not reply.has_error(), reply.error
    return dict(reply.content.metric_records["metrics"])


def encoded(reply: Message) -> dict[str, Any]:
    return {name: array.numpy() for name, array in reply.content.array_records["arrays"].items()}


def change(reply: Message, plan: Layout, how: Compression = Compression.NONE) -> dict[str, Any]:
    return decode(encoded(reply), plan.arrays, how, 0.1)


def why(station: Station) -> str:
    """What the station's people are told of a message that was declined; the server is not."""
    return msgspec.json.decode(Path(station.brief.progress).read_bytes(), type=Progress).doing


def test_it_learns_and_says_how_much(station: Station, plan: Layout) -> None:
    reply = train(station, plan)
    told = numbers(reply)
    assert set(told) == set(TRAINED)
    assert (told["steps"], told["asked"], told["preempted"], told["epsilon"]) == (3, 3, 0, 0)
    assert told["num-examples"] == 12
    assert 0 < told["train-loss"] < 100
    learnt = change(reply, plan)
    assert all(np.abs(value).max() > 0 for name, value in learnt.items() if "lora_B" in name)


def test_the_same_seed_gives_the_same_change_and_every_round_and_station_another(
    station: Station, plan: Layout
) -> None:
    first = encoded(train(station, plan))
    again = encoded(train(station, plan))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    next_round = encoded(train(station, plan, server_round=2))
    station.write(station="other")
    elsewhere = encoded(train(station, plan))
    station.write(station="test")
    station.configure(seed=1)
    reseeded = encoded(train(station, plan))
    for other in (next_round, elsewhere, reseeded):
        assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_training_lowers_the_held_out_loss(station: Station, plan: Layout) -> None:
    before = numbers(evaluate(station, plan))
    assert set(before) == set(JUDGED)
    assert before["num-examples"] == 2 * ROWS
    station.configure(local_steps=25, learning_rate=1e-2)
    reply = train(station, plan)
    learnt = {name: value + change(reply, plan)[name] for name, value in plan.begin(station.base, 0).items()}
    arrays = ArrayRecord({name: Array(value) for name, value in to_wire(learnt).items()})
    after = app(
        asked("evaluate", RecordDict({"arrays": arrays, "config": ConfigRecord(station.terms().record())})),
        station.context,
    )
    assert numbers(after)["held-out-loss"] < before["held-out-loss"]


class Captured:
    """All that would go out, as Flower would serialise it."""

    def __init__(self, reply: Message) -> None:
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

        self.reply = reply
        self.objects = get_all_nested_objects(reply)
        self.bytes = b"".join(each.deflate() for each in self.objects.values())


def test_nothing_but_adapters_counts_and_metrics_leaves_a_station(station: Station, plan: Layout) -> None:
    """Train, judge and be asked, then look at every byte of every reply."""
    replies = [
        train(station, plan),
        evaluate(station, plan, final=True),
        app(asked("query"), station.context),
    ]
    allowed = [({"arrays", "metrics"}, set(TRAINED)), ({"metrics"}, set(JUDGED)), ({"metrics"}, set(PRESENT))]
    texts = {episode.task for episode in DatasetIndex(Path(station.brief.datasets[0])).list()}
    secret = [station.brief.station, *station.brief.datasets, *texts, "front", "wrist", str(station.folder)]
    for reply, (records, metrics) in zip(replies, allowed, strict=True):
        captured = Captured(reply)
        assert set(reply.content) == records
        assert set(numbers(reply)) == metrics
        assert all(isinstance(value, float) for value in numbers(reply).values())
        assert {type(each).__name__ for each in captured.objects.values()} <= {
            "Message", "RecordDict", "MetricRecord", "ArrayRecord", "Array", "ArrayChunk",
        }  # fmt: skip
        for text in secret:
            assert text.encode() not in captured.bytes, text
    sent = encoded(replies[0])
    assert {name: value.shape for name, value in sent.items()} == dict(plan.arrays)
    assert {value.dtype for value in sent.values()} == {np.dtype(np.float16)}
    # Of a known size: names and numpy's headers come on top of the numbers.
    assert 0 < len(Captured(replies[0]).bytes) - plan.bytes_a_round < 600 * len(plan.arrays)


def test_statistics_leave_only_with_consent(station: Station) -> None:
    refused = app(asked("query.statistics"), station.context)
    assert refused.error.code == Decline.NOT_AGREED
    station.write(share_statistics=True)
    told = numbers(app(asked("query.statistics"), station.context))
    assert told["count"] == [4 * ROWS]
    assert all(len(value) == 6 for name, value in told.items() if name != "count")


def test_a_station_that_is_needed_says_so_at_once(station: Station, plan: Layout) -> None:
    station.flag.touch()
    began = time.monotonic()
    reply = train(station, plan)
    assert reply.error.code == Decline.BUSY
    assert time.monotonic() - began < 1.0
    assert evaluate(station, plan).error.code == Decline.BUSY
    assert numbers(app(asked("query"), station.context))["ready"] == 0


def test_a_station_that_becomes_needed_sends_what_it_has(station: Station, plan: Layout) -> None:
    station.configure(local_steps=2_000, min_examples=4)

    def operator() -> None:
        """Wants the arm as soon as some steps were done."""
        progress = Path(station.brief.progress)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if progress.exists() and msgspec.json.decode(progress.read_bytes(), type=Progress).step >= 2:
                break
            time.sleep(0.005)
        station.flag.touch()

    person = threading.Thread(target=operator)
    person.start()
    told = numbers(train(station, plan))
    person.join()
    assert told["preempted"] == 1
    assert 2 <= told["steps"] < 2_000
    assert told["num-examples"] == 4 * told["steps"]
    assert told["asked"] == 2_000


def test_too_little_work_is_not_sent(station: Station, plan: Layout) -> None:
    station.configure(local_seconds=1e-9, min_examples=5)
    reply = train(station, plan)
    assert reply.error.code == Decline.BUSY
    assert "0 of 3 steps" in why(station)


def test_a_finished_runs_adapter_is_kept_even_when_the_arm_is_needed(station: Station, plan: Layout) -> None:
    station.flag.touch()
    told = numbers(evaluate(station, plan, final=True, server_round=3))
    assert told["num-examples"] == 0
    kept = open_adapter(Path(station.brief.candidates) / "federated")
    assert (kept.manifest.round, kept.manifest.policy_hash) == (3, station.base.hash)
    for name, value in kept.arrays().items():
        np.testing.assert_array_equal(value, to_wire(plan.begin(station.base, 0))[name].astype(np.float32))
    when = kept.folder.stat().st_mtime_ns
    evaluate(station, plan, final=True, server_round=3)
    assert kept.folder.stat().st_mtime_ns == when  # it is offered again to those that were away, and kept once


def test_what_is_not_final_is_not_kept(station: Station, plan: Layout) -> None:
    evaluate(station, plan)
    assert list(Path(station.brief.candidates).iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        ({"policy_hash": "0" * 12}, Decline.NO_POLICY, "is not here"),
        ({"version": 2}, Decline.OTHER_VERSION, "speaks version 2"),
        ({"statistics": {"action.mean": [0.0] * 6}}, Decline.NOT_AGREED, "statistics are not those"),
    ],
)
def test_terms_that_do_not_fit_are_declined_with_a_sentence(
    station: Station, plan: Layout, spoil: dict[str, Any], code: Decline, says: str
) -> None:
    reply = train(station, plan, **spoil)
    assert reply.error.code == code
    assert says in why(station)


def test_an_adapter_of_another_shape_is_declined(station: Station, base: Bundle) -> None:
    reply = train(station, layout(base, Shape(rank=5)))
    assert reply.error.code == Decline.NOT_AGREED
    assert "instead of float16" in why(station)


def test_a_station_without_consent_or_episodes_declines(station: Station, plan: Layout, tmp_path: Path) -> None:
    failures = tmp_path / "failures"
    shutil.copytree(station.brief.datasets[0], failures)
    station.write(datasets=())
    assert train(station, plan).error.code == Decline.NO_DATA
    for number in range(6):
        DatasetIndex(failures).mark(number, False)
    station.write(datasets=(str(failures),))
    reply = train(station, plan)
    assert reply.error.code == Decline.NO_DATA
    assert "failures has no episodes to learn from" in why(station)
    assert "failures" not in reply.error.reason


def test_the_text_of_an_error_stays_on_the_station(station: Station, plan: Layout, tmp_path: Path) -> None:
    """A table that cannot be read: the exception is pyarrow's, and names the file."""
    broken = tmp_path / "grandmas-kitchen"
    shutil.copytree(station.brief.datasets[0], broken)
    for path in broken.glob("data/*/*.parquet"):
        path.write_bytes(b"PAR1 and nothing else")
    station.write(datasets=(str(broken),))
    reply = train(station, plan)
    assert reply.error.code == Decline.FAILED
    assert reply.error.reason == Decline.FAILED.sentence
    assert b"grandma" not in Captured(reply).bytes
    assert why(station).startswith("declined: ")


def test_settings_beyond_the_limits_are_declined(station: Station, plan: Layout) -> None:
    station.context.run_config = {**station.context.run_config, "local-steps": 10**9}
    reply = train(station, plan)
    assert reply.error.code == Decline.NOT_AGREED
    assert "local-steps" in why(station)


def test_a_policy_that_takes_more_memory_than_the_station_gives_is_declined_before_it_is_loaded(
    station: Station, plan: Layout
) -> None:
    station.write(memory_max_bytes=10**9)
    reply = train(station, plan)
    assert reply.error.code == Decline.NO_MEMORY
    assert "1.1 GB, and SuperNode 0.3; federation.memory_max_gb is 1.0" in why(station)
    station.write(memory_max_bytes=2 * 10**9)
    assert not train(station, plan).has_error()


def test_several_datasets_are_learnt_from_together(station: Station, plan: Layout, tmp_path: Path) -> None:
    alone = encoded(train(station, plan))
    other = tmp_path / "kitchen"
    shutil.copytree(station.brief.datasets[0], other)
    station.write(datasets=(station.brief.datasets[0], str(other)))
    both = train(station, plan)
    assert numbers(both)["steps"] == 3
    assert any(not np.array_equal(alone[name], value) for name, value in encoded(both).items())
    told = numbers(app(asked("query"), station.context))
    assert (told["episodes"], told["rows"], told["held-out-episodes"]) == (8, 8 * ROWS, 4)


def test_an_action_expert_can_be_what_travels(station: Station, base: Bundle) -> None:
    plan = layout(base, Shape(Method.EXPERT))
    station.configure(method="expert", learning_rate=1e-3)
    learnt = change(train(station, plan), plan)
    weights = load_file(base.policy / "model.safetensors")
    assert learnt.keys() <= weights.keys()
    assert sum(bool(np.abs(value).max() > 0) for value in learnt.values()) > len(learnt) * 0.9


def test_fedprox_holds_a_station_near_the_global_adapter(station: Station, plan: Layout) -> None:
    station.configure(local_steps=12, learning_rate=1e-2)

    def length(**terms: Any) -> float:
        learnt = change(train(station, plan, **terms), plan)
        return math.sqrt(sum(float((value**2).sum()) for value in learnt.values()))

    free, held = length(), length(proximal_mu=1000.0)
    assert held < 0.6 * free


@pytest.mark.parametrize("how", [Compression.INT8, Compression.TOP_K])
def test_compression_sends_less_and_what_is_left_out_comes_later(
    station: Station, plan: Layout, how: Compression
) -> None:
    plain = change(train(station, plan), plan)
    station.configure(compression=str(how))
    reply = train(station, plan)
    sent = change(reply, plan, how)
    assert sum(value.nbytes for value in encoded(reply).values()) < plan.bytes_a_round * 0.8
    late = station.context.state.array_records["residual"]
    for name in plan.arrays:
        np.testing.assert_allclose(sent[name] + late[name].numpy(), plain[name], atol=2e-5)
    second = change(train(station, plan), plan, how)
    assert any(not np.array_equal(sent[name], second[name]) for name in sent)


def test_with_privacy_only_noise_counts_and_the_budget_leave(station: Station, plan: Layout) -> None:
    station.configure(privacy_clip=0.01, privacy_noise=4.0)
    reply = train(station, plan)
    told = numbers(reply)
    assert told["train-loss"] == told["seconds"] == 0
    assert told["num-examples"] == 12
    assert told["epsilon"] == pytest.approx(epsilon(mu_of(4.0), 1e-5))
    everything = np.concatenate([value.ravel() for value in change(reply, plan).values()])
    assert everything.std() == pytest.approx(0.04, rel=0.05)
    # No seed of the run gives the same noise again.
    assert any(not np.array_equal(value, encoded(reply)[name]) for name, value in encoded(train(station, plan)).items())
    assert Ledger(Path(station.brief.ledger)).mu() == pytest.approx(math.hypot(0.5, 0.5))
    judged = numbers(evaluate(station, plan))
    assert judged == {"num-examples": 0, "held-out-loss": 0, "seconds": 0}
    station.write(share_statistics=True)
    assert app(asked("query.statistics"), station.context).error.code == Decline.NOT_AGREED


def test_a_station_can_insist_on_privacy_and_stop_when_it_is_spent(station: Station, plan: Layout) -> None:
    budget = epsilon(math.hypot(0.5, 0.5), 1e-5) + 0.01
    station.write(privacy=Privacy(clip=0.01, noise=4.0, max_epsilon=budget))
    assert numbers(train(station, plan))["epsilon"] < budget
    assert numbers(train(station, plan, run="another"))["epsilon"] < budget
    reply = train(station, plan, server_round=3)
    assert reply.error.code == Decline.SPENT
    assert len(Ledger(Path(station.brief.ledger)).releases()) == 2


def test_a_station_that_cannot_write_its_budget_down_sends_nothing(station: Station, plan: Layout) -> None:
    station.write(privacy=Privacy(clip=0.01, noise=4.0), ledger="")
    assert train(station, plan).has_error()


def test_a_node_that_is_no_station_declines(station: Station, plan: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SO_AGENT_BRIEF")
    reply = train(station, plan)
    assert reply.error.code == Decline.NO_DATA
    assert reply.error.reason == Decline.NO_DATA.sentence


def test_a_loss_that_is_no_number_is_declined_and_not_sent(station: Station, plan: Layout) -> None:
    arrays = {name: np.full(shape, 6e4, np.float32) for name, shape in plan.arrays.items()}
    wire = ArrayRecord({name: Array(value) for name, value in to_wire(arrays).items()})
    station.configure(learning_rate=0.9, local_steps=20)
    record = RecordDict({"arrays": wire, "config": ConfigRecord(station.terms().record())})
    reply = app(asked("train", record), station.context)
    assert reply.has_error()
    assert reply.error.code in (Decline.FAILED, Decline.NOT_AGREED)


def test_the_candidate_is_what_was_evaluated(station: Station, plan: Layout) -> None:
    """Nothing about it depends on this process: it is read back by its hashes."""
    evaluate(station, plan, final=True)
    folder = Path(station.brief.candidates) / "federated"
    manifest = json.loads((folder / "adapter.json").read_text())
    assert manifest["statistics"] == station.terms().statistics
    assert torch.get_num_threads() == 1
