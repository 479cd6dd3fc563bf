"""Which episodes are learnt from and which only judge, and a federated view of one dataset."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agent.errors import BadInput
from agent.fl.partition import IidPartitioner, Partitioner, open_episodes
from agent.robot.recording.index import DatasetIndex, EpisodeSummary

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDataset

TRAIN: Final = "train"
TEST: Final = "test"
SALT: Final = "so-agent held out"
"""Never to be changed: episodes that were held out would be learnt from."""


@dataclass(frozen=True)
class Episodes:
    """Numbers of episodes, ascending."""

    learnt: tuple[int, ...]
    held_out: tuple[int, ...]


def divide(dataset: Path, held_out: float) -> Episodes:
    """A station's own episodes. Which are held out depends on their numbers alone, so that an episode that was once
    held out never is learnt from, however many are recorded later."""
    table = DatasetIndex(dataset).list()
    good = {each.episode for each in table if usable(each)}
    held = {each.episode for each in table if is_held_out(each.episode, held_out)}
    return Episodes(tuple(sorted(good - held)), tuple(sorted(good & held)))


def divide_part(episodes: Sequence[int], held_out: float) -> Episodes:
    """Of a simulated station's episodes."""
    held = tuple(number for place, number in enumerate(episodes) if is_held_out(place, held_out))
    return Episodes(tuple(number for number in episodes if number not in held), held)


def usable(episode: EpisodeSummary) -> bool:
    """What a person showed, unless it was marked as a failure; what a policy did, only if it was marked as a success:
    nobody may have watched."""
    if episode.source == "policy":
        return episode.success is True
    return episode.success is not False


def is_held_out(place: int, share: float) -> bool:
    """Whether the episode at this place, counted from 0, is held out: one of every 1 / share, drawn anew for each
    such block, so that tasks that take turns all are among them. Of the first block it is the second episode: there
    is something to judge by as soon as there are two. For shares above one half, one of each block is learnt from."""
    size = max(2, round(1 / min(share, 1 - share)))
    block, within = divmod(place, size)
    drawn = int.from_bytes(hashlib.sha256(f"{SALT} {block}".encode()).digest()[:8]) % size if block else 1
    return (within == drawn) == (share <= 0.5)


class FederatedLeRobotDataset:
    """One LeRobotDataset as if it lay on many stations, like Flower Datasets' `FederatedDataset`.

    `load_partition(3)` is what station 3 learns from, `load_split("test")` what no station ever sees.
    """

    def __init__(
        self, dataset: Path, partitioners: Mapping[str, Partitioner | int], test: float = 0.0, **how: Any
    ) -> None:
        """`partitioners` are by split; a number stands for an even division. `test` is the share of episodes of the
        split `test`; `how` goes to LeRobotDataset. Raises BadInput for other splits."""
        if odd := sorted(set(partitioners) - {TRAIN, TEST}):
            raise BadInput(f"There is no split {', '.join(odd)}.", f"There are {TRAIN} and {TEST}.")
        self._dataset, self._how = dataset, how
        self._partitioners = {
            split: IidPartitioner(each) if isinstance(each, int) else each for split, each in partitioners.items()
        }
        everything = [each.episode for each in DatasetIndex(dataset).list()]
        held = {number for place, number in enumerate(everything) if test and is_held_out(place, test)}
        self._splits = {TRAIN: tuple(number for number in everything if number not in held), TEST: tuple(sorted(held))}
        for split, each in self._partitioners.items():
            each.dataset = dataset
            each.only = self._splits[split]

    @property
    def partitioners(self) -> dict[str, Partitioner]:
        return dict(self._partitioners)

    def episodes(self, partition_id: int, split: str | None = None) -> tuple[int, ...]:
        """Numbers of a partition's episodes. Raises BadInput when there is no such partition."""
        return self._of(split).episodes(partition_id)

    def load_partition(self, partition_id: int, split: str | None = None) -> "LeRobotDataset":
        """Without a split, the only one that has a partitioner. Raises BadInput when there is no such partition."""
        return self._of(split).load_partition(partition_id, **self._how)

    def load_split(self, split: str) -> "LeRobotDataset":
        """Raises BadInput when there is no such split, or nothing in it."""
        if not self._splits.get(split):
            raise BadInput(f"There are no episodes in the split {split}.", "Give a share of episodes: test=0.2.")
        return open_episodes(self._dataset, self._splits[split], **self._how)

    def _of(self, split: str | None) -> Partitioner:
        if split is None and len(self._partitioners) == 1:
            return next(iter(self._partitioners.values()))
        if split not in self._partitioners:
            raise BadInput(f"No partitioner was given for {split}.", f"There are {', '.join(self._partitioners)}.")
        return self._partitioners[split]
