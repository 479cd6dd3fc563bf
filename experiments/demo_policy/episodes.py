"""Recorded episodes in memory: rows of joints and actions, and the cameras' images at the size the policy sees."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import av
import numpy as np
import torch
from lerobot.datasets import LeRobotDataset
from numpy.typing import NDArray

from agent.errors import BadInput
from experiments.demo_policy.recipe import CAMERAS, CHUNK

MOVES_DEG: Final = 0.4
"""Rows before the leader has moved this far are left out: they would teach the policy to wait."""

ROWS_BEFORE: Final = 1
ROWS_AT_REST: Final = 12
"""Kept after the last movement, at most. At rest the goal is where the joints are: a policy that sees much of that
learns to copy its joints and creeps off the disc; one that sees little trusts its eyes alone."""


class Episodes(NamedTuple):
    """Rows of all episodes, one after the other."""

    front: NDArray[np.uint8]  # (rows, 3/4 px, px, 3)
    wrist: NDArray[np.uint8]
    states: NDArray[np.float32]  # (rows, 6): measured joints
    actions: NDArray[np.float32]  # (rows, 6): goals that were sent
    episodes: NDArray[np.int64]  # (rows,)
    tasks: NDArray[np.int64]  # (rows,), into `texts`
    texts: NDArray[np.str_]

    def chunks(self) -> NDArray[np.float32]:
        """The actions from each row on, (rows, CHUNK, 6). After its end an episode holds its last action."""
        last = np.searchsorted(self.episodes, self.episodes, side="right") - 1
        rows = np.minimum(np.arange(len(self.episodes))[:, None] + np.arange(CHUNK), last[:, None])
        return self.actions[rows]

    def statistics(self) -> dict[str, dict[str, torch.Tensor]]:
        """What lerobot's processors normalise with."""
        return {key: _statistics(rows) for key, rows in (("observation.state", self.states), ("action", self.actions))}


def load(dataset: Path, image_px: int, cache: Path, progress: Callable[[int, int], None]) -> Episodes:
    """Decode the videos of a LeRobotDataset once; the small images are kept in `cache`."""
    from agent.robot.recording.index import DatasetIndex

    count = DatasetIndex(dataset).count()
    file = cache / f"episodes-{count}-{image_px}-{ROWS_AT_REST}.npz"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        parts = []
        source = LeRobotDataset(f"local/{dataset.name}", root=dataset)
        for episode in range(count):
            parts.append(_episode(source, episode, image_px))
            progress(episode + 1, count)
        unfinished = file.with_suffix(".tmp")
        with unfinished.open("wb") as stream:
            np.savez(stream, **_join(parts)._asdict())
        unfinished.rename(file)
    with np.load(file) as kept:
        return Episodes(**{name: kept[name] for name in Episodes._fields})


def moving(actions: NDArray[np.float32]) -> slice:
    """The rows of one episode from just before the leader moves until it has rested for a while. Shape (rows, 6)."""
    away = np.abs(actions - actions[0]).max(axis=1) > MOVES_DEG
    before_end = np.abs(actions - actions[-1]).max(axis=1) > MOVES_DEG
    first = max(0, int(away.argmax()) - ROWS_BEFORE) if away.any() else 0
    last = len(actions) - int(before_end[::-1].argmax()) if before_end.any() else len(actions)
    return slice(first, min(len(actions), last + ROWS_AT_REST))


def _episode(source: LeRobotDataset, episode: int, image_px: int) -> Episodes:
    about = source.meta.episodes[episode]
    start, stop = int(about["dataset_from_index"]), int(about["dataset_to_index"])
    table = source.hf_dataset.with_format("numpy")[start:stop]
    actions, states = np.stack(table["action"]).astype(np.float32), np.stack(table["observation.state"])
    rows = moving(actions)
    count = rows.stop - rows.start
    return Episodes(
        *(_images(source, episode, camera, rows, image_px) for camera in CAMERAS),
        states[rows].astype(np.float32),
        actions[rows],
        np.full(count, episode),
        np.zeros(count, np.int64),
        np.array(about["tasks"]),
    )


def shrink(picture: NDArray[np.uint8], image_px: int) -> NDArray[np.uint8]:
    """What lerobot's `resize_with_pad` makes of a 4:3 picture, without the bar: (3/4 px, px, 3), rounded.

    It interpolates between the four nearest pixels and looks at no others; picking those first is ten times faster.
    """
    height, width = picture.shape[:2]
    (above, below, down), (left, right, across) = _nearest(height, image_px * 3 // 4), _nearest(width, image_px)
    top, bottom = picture[above].astype(np.float32), picture[below].astype(np.float32)
    rows = top + (bottom - top) * down[:, None, None]
    mixed = rows[:, left] + (rows[:, right] - rows[:, left]) * across[:, None]
    return mixed.round().astype(np.uint8)


def _nearest(size: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each of `wanted` points along `size` pixels: the pixels on either side, and the share of the second."""
    points = np.clip((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0, size - 1)
    first = np.floor(points).astype(np.int64)
    return first, np.minimum(first + 1, size - 1), (points - first).astype(np.float32)


def _images(source: LeRobotDataset, episode: int, camera: str, rows: slice, image_px: int) -> NDArray[np.uint8]:
    """One camera's images of some rows, decoded in one pass, shrunk as the policy does it."""
    key = f"observation.images.{camera}"
    begin = float(source.meta.episodes[episode][f"videos/{key}/from_timestamp"])
    images = []
    with av.open(str(source.root / source.meta.get_video_file_path(episode, key))) as file:
        for frame in file.decode(video=0):
            row = round((float(frame.time or 0.0) - begin) * source.fps)
            if rows.start <= row < rows.stop:
                images.append(shrink(frame.to_ndarray(format="rgb24"), image_px))
    if len(images) != rows.stop - rows.start:
        raise BadInput(f"Episode {episode} has {len(images)} images of {camera} for {rows.stop - rows.start} rows.")
    return np.stack(images)


def _join(parts: list[Episodes]) -> Episodes:
    texts = sorted({str(part.texts[0]) for part in parts})
    tasks = [np.full(len(part.states), texts.index(str(part.texts[0]))) for part in parts]
    rows = [np.concatenate(column) for column in list(zip(*parts, strict=True))[:5]]
    return Episodes(*rows, np.concatenate(tasks), np.array(texts))


def _statistics(rows: NDArray[np.float32]) -> dict[str, torch.Tensor]:
    values = {"mean": rows.mean(0), "std": rows.std(0), "min": rows.min(0), "max": rows.max(0)}
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()}
