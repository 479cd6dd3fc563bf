"""Divide the episodes of one LeRobotDataset among simulated stations, in the shape of Flower Datasets' partitioners.

An episode is never cut: rows of one episode on two stations would know each other. Everything depends on the seed.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from agent.errors import BadInput
from agent.fl.settings import Division
from agent.robot.recording.index import DatasetIndex, EpisodeSummary

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDataset

VIDEO_BACKEND: Final = "pyav"


class Partitioner(ABC):
    """Set `dataset` once, then load partitions by number."""

    def __init__(self, num_partitions: int, seed: int = 0) -> None:
        if num_partitions < 1:
            raise BadInput(f"{num_partitions} partitions are not possible.", "Give at least one.")
        self._count, self._seed = num_partitions, seed
        self._dataset: Path | None = None
        self._only: frozenset[int] | None = None
        self._parts: list[tuple[int, ...]] | None = None

    @property
    def num_partitions(self) -> int:
        return self._count

    @property
    def dataset(self) -> Path:
        """The folder that is divided. Raises BadInput before it was set."""
        if self._dataset is None:
            raise BadInput("There is nothing to divide yet.", "Set the partitioner's dataset.")
        return self._dataset

    @dataset.setter
    def dataset(self, folder: Path) -> None:
        self._dataset, self._parts = folder, None

    @property
    def only(self) -> frozenset[int] | None:
        """The episodes that are divided; None: all."""
        return self._only

    @only.setter
    def only(self, episodes: Iterable[int] | None) -> None:
        self._only, self._parts = None if episodes is None else frozenset(episodes), None

    def episodes(self, partition_id: int) -> tuple[int, ...]:
        """Numbers of a partition's episodes, ascending. Raises BadInput when there is no such partition."""
        if not 0 <= partition_id < self._count:
            raise BadInput(f"There is no partition {partition_id}.", f"There are 0 to {self._count - 1}.")
        if self._parts is None:
            table = [
                each for each in DatasetIndex(self.dataset).list() if self._only is None or each.episode in self._only
            ]
            if len(table) < self._count:
                raise BadInput(
                    f"{self.dataset.name} has {len(table)} episodes, too few for {self._count} stations.",
                    "Simulate fewer, or give another dataset.",
                )
            parts = self._divide(table, np.random.default_rng(self._seed))
            self._parts = [tuple(sorted(part)) for part in _none_empty(parts)]
        return self._parts[partition_id]

    def load_partition(self, partition_id: int, **how: Any) -> "LeRobotDataset":
        """As lerobot opens it; `how` goes to LeRobotDataset. Raises BadInput."""
        return open_episodes(self.dataset, self.episodes(partition_id), **how)

    @abstractmethod
    def _divide(self, table: Sequence[EpisodeSummary], dice: np.random.Generator) -> list[list[int]]:
        """Every episode's number in one of the lists."""


class IidPartitioner(Partitioner):
    """Each station has the same number of episodes, of all kinds."""

    def _divide(self, table: Sequence[EpisodeSummary], dice: np.random.Generator) -> list[list[int]]:
        shuffled = dice.permutation([each.episode for each in table])
        return [part.tolist() for part in np.array_split(shuffled, self._count)]


class TaskPartitioner(Partitioner):
    """Each station has seen some tasks only: one, or several where there are more tasks than stations. Stations that
    share a task share its episodes."""

    def _divide(self, table: Sequence[EpisodeSummary], dice: np.random.Generator) -> list[list[int]]:
        groups = _by_task(table)
        parts: list[list[int]] = [[] for _ in range(self._count)]
        for number, episodes in enumerate(groups):
            stations = list(range(number, self._count, len(groups))) or [number % self._count]
            for station, share in zip(stations, np.array_split(dice.permutation(episodes), len(stations)), strict=True):
                parts[station] += share.tolist()
        return parts


class DirichletPartitioner(Partitioner):
    """Of each task, shares drawn from a Dirichlet distribution: the smaller alpha, the more one-sided the stations
    (Hsu et al. 2019, arXiv:1909.06335)."""

    def __init__(self, num_partitions: int, alpha: float, seed: int = 0) -> None:
        super().__init__(num_partitions, seed)
        if alpha <= 0:
            raise BadInput(f"A Dirichlet distribution with alpha {alpha:g} does not exist.", "Give one above 0.")
        self._alpha = alpha

    def _divide(self, table: Sequence[EpisodeSummary], dice: np.random.Generator) -> list[list[int]]:
        parts: list[list[int]] = [[] for _ in range(self._count)]
        for episodes in _by_task(table):
            shares = dice.dirichlet([self._alpha] * self._count)
            bounds = np.rint(np.cumsum(shares)[:-1] * len(episodes)).astype(int)
            for part, some in zip(parts, np.split(dice.permutation(episodes), bounds), strict=True):
                part += some.tolist()
        return parts


def partitioner(how: Division, num_partitions: int, alpha: float, seed: int) -> Partitioner:
    match how:
        case Division.IID:
            return IidPartitioner(num_partitions, seed)
        case Division.TASK:
            return TaskPartitioner(num_partitions, seed)
        case Division.DIRICHLET:
            return DirichletPartitioner(num_partitions, alpha, seed)
        case Division.STATIONS:
            raise BadInput("Where each station has a dataset of its own, nothing is divided.")


def open_episodes(dataset: Path, episodes: Sequence[int], **how: Any) -> "LeRobotDataset":
    from lerobot.datasets import LeRobotDataset

    values: dict[str, Any] = {"root": dataset, "episodes": list(episodes), "video_backend": VIDEO_BACKEND}
    return LeRobotDataset(f"station/{dataset.name}", **(values | how))


def _by_task(table: Sequence[EpisodeSummary]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for each in table:
        groups.setdefault(each.task, []).append(each.episode)
    return [groups[task] for task in sorted(groups)]


def _none_empty(parts: list[list[int]]) -> list[list[int]]:
    """A station without any episode would not be a station: the one with the most gives one away."""
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return parts
