"""The rows of a dataset as a policy learns from them: lerobot's own dataset and sampler."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from lerobot.datasets import EpisodeAwareSampler, LeRobotDataset, LeRobotDatasetMetadata, compute_sampler_state
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.utils.utils import cycle
from torch.utils.data import DataLoader, Subset

from agent.inference.training.plan import Plan

VIDEO_BACKEND: Final = "pyav"
"""In the environment on every kind of computer; lerobot's default is not."""

VALIDATION_ROWS: Final = 32
"""Full size, on two cores without a GPU, these take two minutes."""

PICTURES: Final = "observation.images."

WORKERS_ON_GPU: Final = 4
"""Beside a GPU, decoding videos would be what it waits for; on a CPU it is a hundredth of the work."""


class Rows:
    """Batches in an order that depends on seed and step alone, under the policy's names of its cameras."""

    def __init__(self, plan: Plan, dataset: Path, config: Any, device: str) -> None:
        self._plan, self._workers = plan, WORKERS_ON_GPU if device != "cpu" else 0
        name = f"station/{plan.dataset}"
        meta = LeRobotDatasetMetadata(name, root=dataset)
        delta = resolve_delta_timestamps(config, meta)

        def opened(episodes: tuple[int, ...]) -> Any:
            found: Any = LeRobotDataset(
                name,
                root=dataset,
                episodes=list(episodes),
                delta_timestamps=delta,
                video_backend=VIDEO_BACKEND,
                return_uint8=True,
            )
            if meta.image_keys:
                found.reader.hf_dataset = _ByColumn(found.reader.hf_dataset)
            return found

        self._learnt = opened(plan.episodes)
        self._held_out = opened(plan.held_out) if plan.held_out else None
        self._sampler = EpisodeAwareSampler(
            meta.episodes["dataset_from_index"],
            meta.episodes["dataset_to_index"],
            episode_indices_to_use=list(plan.episodes),
            drop_n_last_frames=getattr(config, "drop_n_last_frames", 0),
            shuffle=True,
            seed=plan.seed,
            absolute_to_relative_idx=self._learnt.absolute_to_relative_idx,
        )
        self.tasks = tuple(sorted({text for number in plan.episodes for text in meta.episodes["tasks"][number]}))

    def __len__(self) -> int:
        return len(self._sampler)

    @property
    def episodes(self) -> int:
        return len(self._plan.episodes)

    def batches(self, step: int) -> Iterator[dict[str, Any]]:
        """Without end, from the one of this step on."""
        self._sampler.load_state_dict(compute_sampler_state(step, len(self._sampler), self._plan.batch, 1))
        loader = DataLoader(
            self._learnt,
            batch_size=self._plan.batch,
            sampler=self._sampler,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            multiprocessing_context="spawn" if self._workers else None,
        )
        for batch in cycle(loader):
            yield self._named(batch)

    def held_out(self) -> Iterator[dict[str, Any]]:
        """The same rows each time, spread evenly over all held-out episodes; none without such."""
        if self._held_out is None:
            return
        count = min(VALIDATION_ROWS, len(self._held_out))
        some = [number * len(self._held_out) // count for number in range(count)]
        for batch in DataLoader(Subset(self._held_out, some), batch_size=self._plan.batch):
            yield self._named(batch)

    def _named(self, batch: dict[str, Any]) -> dict[str, Any]:
        """With pictures from 0 to 1, and without cameras that the policy does not look at."""
        named = {key: value for key, value in batch.items() if not key.startswith(PICTURES)}
        for feature, there in self._plan.cameras.items():
            picture = batch[there]
            named[feature] = picture.float() / 255 if picture.dtype == torch.uint8 else picture
            if (padded := batch.get(f"{there}_is_pad")) is not None:
                named[f"{feature}_is_pad"] = padded
        return named


class _ByColumn:
    """A table of which one column can be read without the others.

    lerobot reads the actions of a chunk as table["action"][rows]. Where a dataset's pictures lie in the table itself
    and not in videos, that decodes all pictures of these rows, too: 100 for one row to learn from.
    """

    def __init__(self, table: Any) -> None:
        self._table = table
        self._columns: dict[str, _Column] = {}

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self._table[key]
        if key not in self._columns:
            self._columns[key] = _Column(self._table.select_columns([key]), key)
        return self._columns[key]


class _Column:
    def __init__(self, table: Any, name: str) -> None:
        self._table, self._name = table, name

    def __getitem__(self, rows: Any) -> Any:
        return self._table[rows][self._name]
