"""Episodes are divided whole, by the seed alone; what is held out once is never learnt from."""

import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import BadInput
from agent.fl.dataset import FederatedLeRobotDataset, divide, divide_part, is_held_out, usable
from agent.fl.partition import DirichletPartitioner, IidPartitioner, Partitioner, TaskPartitioner
from agent.fl.synthetic import drawn
from agent.robot.recording.index import DatasetIndex, EpisodeSummary


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 episodes, two tasks in turns."""
    return drawn(tmp_path_factory.mktemp("cache"), episodes=24)


def parts(partitioner: Partitioner, dataset: Path) -> list[tuple[int, ...]]:
    partitioner.dataset = dataset
    return [partitioner.episodes(number) for number in range(partitioner.num_partitions)]


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: IidPartitioner(5, seed),
        lambda seed: TaskPartitioner(5, seed),
        lambda seed: TaskPartitioner(1, seed),
        lambda seed: DirichletPartitioner(5, 0.1, seed),
        lambda seed: DirichletPartitioner(24, 0.05, seed),
    ],
)
def test_every_episode_is_on_one_station_and_no_station_is_empty(make: object, many: Path) -> None:
    for seed in range(5):
        found = parts(make(seed), many)  # type: ignore[operator]
        assert sorted(number for part in found for number in part) == list(range(24))
        assert all(found)
        assert found == parts(make(seed), many)  # type: ignore[operator]


def test_iid_is_even_and_depends_on_the_seed(many: Path) -> None:
    found = parts(IidPartitioner(5, 0), many)
    assert {len(part) for part in found} == {4, 5}
    assert found != parts(IidPartitioner(5, 1), many)


def tasks(part: tuple[int, ...]) -> Counter[int]:
    return Counter(number % 2 for number in part)


def test_by_task_a_station_has_seen_one_task_only(many: Path) -> None:
    found = parts(TaskPartitioner(5, 0), many)
    assert [len(tasks(part)) for part in found] == [1] * 5
    assert sorted(len(part) for part in found) == [4, 4, 4, 6, 6]


def test_a_small_alpha_is_one_sided_and_a_large_one_even(many: Path) -> None:
    def spread(alpha: float) -> float:
        """How far the stations' shares of the first task are from each other, on average over seeds."""
        found = []
        for seed in range(20):
            shares = [tasks(part)[0] / len(part) for part in parts(DirichletPartitioner(4, alpha, seed), many)]
            found.append(max(shares) - min(shares))
        return sum(found) / len(found)

    assert spread(0.1) > 0.8
    assert spread(1000.0) < 0.2


def test_more_stations_than_episodes_are_refused(many: Path) -> None:
    partitioner = IidPartitioner(25)
    partitioner.dataset = many
    with pytest.raises(BadInput, match="24 episodes, too few for 25 stations"):
        partitioner.episodes(0)
    with pytest.raises(BadInput, match="no partition 7"):
        parts(IidPartitioner(3), many) and partitioner_of(many).episodes(7)


def partitioner_of(dataset: Path) -> Partitioner:
    partitioner = IidPartitioner(3)
    partitioner.dataset = dataset
    return partitioner


def test_a_partition_is_a_dataset_that_lerobot_opens(many: Path) -> None:
    view = FederatedLeRobotDataset(many, {"train": DirichletPartitioner(3, 0.5)}, test=0.2)
    held = view.load_split("test")
    loaded = [view.load_partition(number) for number in range(3)]
    assert {int(each["episode_index"]) for each in (held[0], held[len(held) - 1])} <= set(range(24))
    numbers = [set(view.episodes(number)) for number in range(3)]
    assert sum(len(each) for each in loaded) + len(held) == 24 * 40
    assert [len(each) for each in loaded] == [40 * len(each) for each in numbers]
    row = loaded[1][0]
    assert int(row["episode_index"]) in numbers[1]
    assert row["observation.images.front"].shape == (3, 96, 96)
    assert view.partitioners["train"].num_partitions == 3
    assert isinstance(FederatedLeRobotDataset(many, {"train": 4}).partitioners["train"], IidPartitioner)


def test_splits_and_partitions_that_are_not_there_are_refused(many: Path) -> None:
    with pytest.raises(BadInput, match="no split validation"):
        FederatedLeRobotDataset(many, {"validation": 3})
    view = FederatedLeRobotDataset(many, {"train": 3})
    with pytest.raises(BadInput, match="no episodes in the split test"):
        view.load_split("test")
    with pytest.raises(BadInput, match="No partitioner was given for test"):
        view.load_partition(0, "test")


@given(st.integers(2, 400), st.floats(0.02, 0.98))
def test_the_share_of_held_out_episodes_is_kept(count: int, share: float) -> None:
    held = sum(is_held_out(place, share) for place in range(count))
    block = max(2, round(1 / min(share, 1 - share)))
    assert abs(held / count - share) <= 1 / block + block / count
    if count >= 2 and share <= 0.5:
        assert is_held_out(1, share)  # something to judge by, and
        assert not is_held_out(0, share)  # something to learn from
    assert held < count


def test_held_out_episodes_are_of_all_tasks_and_times() -> None:
    held = [place for place in range(200) if is_held_out(place, 0.2)]
    assert len(held) == 40
    assert 10 < sum(place % 2 for place in held) < 30
    assert all(later - earlier <= 9 for earlier, later in pairwise(held))


@pytest.mark.parametrize(
    ("source", "success", "taken"),
    [
        ("teleop", None, True),
        ("teleop", True, True),
        ("teleop", False, False),
        ("intervention", None, True),
        ("policy", None, False),
        ("policy", True, True),
        ("unknown", None, True),
    ],
)
def test_marks_of_success_are_respected(source: str, success: bool | None, taken: bool) -> None:
    assert usable(EpisodeSummary(0, "reach", 10, 0.3, source, success, False)) is taken


def test_marking_or_deleting_an_episode_moves_no_other(dataset: Path, tmp_path: Path) -> None:
    mine = tmp_path / "episodes"
    shutil.copytree(dataset, mine)
    before = divide(mine, 0.34)
    assert sorted(before.learnt + before.held_out) == list(range(6))
    assert len(before.held_out) == 2
    assert 1 in before.held_out
    failed, gone = before.learnt[0], before.learnt[1]
    DatasetIndex(mine).mark(failed, False)
    DatasetIndex(mine).delete(gone)
    after = divide(mine, 0.34)
    assert after.learnt == tuple(number for number in before.learnt if number not in (failed, gone))
    assert after.held_out == before.held_out
    DatasetIndex(mine).mark(1, False)
    assert 1 not in divide(mine, 0.34).held_out + divide(mine, 0.34).learnt


def test_a_simulated_station_holds_out_of_its_own() -> None:
    found = divide_part((3, 8, 11, 20, 21, 30), 0.34)
    assert sorted(found.learnt + found.held_out) == [3, 8, 11, 20, 21, 30]
    assert 8 in found.held_out
