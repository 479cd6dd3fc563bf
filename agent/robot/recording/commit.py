"""One finished episode becomes part of a LeRobotDataset v3, all of it or nothing.

Everything lerobot knows how to do is lerobot's: features, schemas, statistics, tasks, `info.json`, the card. What is
done here instead of in `LeRobotDataset.save_episode`, and the fact that makes it necessary:

* every episode has its own data, video and metadata files: lerobot appends to open parquet files, and a kill
  before their footer is written loses all episodes since the last `finalize` (measured: 3 of 3);
* files are prepared in a folder beside the dataset's and renamed into place, `info.json` last: lerobot rewrites
  `info.json` and `stats.json` in place (`write_json`), and concatenates videos over the only copy;
* before the first rename a redo record says what is to be renamed, so that the next start finishes what a kill cut.

A reader is safe at every moment: files that `info.json` does not count yet are only surplus rows to lerobot.
"""

import json
import uuid
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.compute_stats import aggregate_stats, compute_episode_stats
from lerobot.datasets.dataset_metadata import CODEBASE_VERSION
from lerobot.datasets.feature_utils import create_empty_dataset_info, get_hf_features_from_features
from lerobot.datasets.io_utils import load_info, load_stats, load_tasks
from lerobot.datasets.utils import (
    DEFAULT_EPISODES_PATH,
    DEFAULT_TASKS_PATH,
    INFO_PATH,
    STATS_PATH,
    DatasetInfo,
    create_lerobot_dataset_card,
    serialize_dict,
    update_chunk_file_indices,
)
from lerobot.datasets.video_utils import get_video_info
from lerobot.utils.constants import ACTION, DEFAULT_FEATURES, OBS_STR
from lerobot.utils.feature_utils import hw_to_dataset_features
from lerobot.utils.utils import flatten_dict

from agent.errors import BadInput
from agent.messages import JOINTS
from agent.robot.recording.durable import Disk, as_json
from agent.robot.recording.index import STATION_PATH, frames_path, sidecar_path
from agent.robot.recording.journal import Episode, Header
from agent.robot.recording.sidecar import frames, summary
from agent.robot.recording.video import encoder_config

STAGE_PREFIX: Final = ".commit-"
"""Hidden, and matched by none of lerobot's globs (`data/*/*.parquet`, `meta/episodes/*/*.parquet`)."""

REDO: Final = "redo.json"

MIN_ROWS: Final = 2
"""lerobot's running statistics need two vectors."""


class Move(msgspec.Struct, frozen=True, array_like=True):
    staged: str
    target: str


class Redo(msgspec.Struct, frozen=True):
    """What is left to do once the staged files are on the disk: rename them, in this order."""

    journal: str
    episode: int
    base_episodes: int
    moves: tuple[Move, ...]


def features(header: Header) -> dict[str, dict[str, Any]]:
    """The dataset's features, named as lerobot's own SO follower would name them."""
    joints: dict[str, type] = {f"{joint}.pos": float for joint in JOINTS}
    cameras: dict[str, tuple[int, ...]] = {view.camera: (view.height, view.width, 3) for view in header.views}
    return {
        **hw_to_dataset_features(joints | cameras, OBS_STR),
        **hw_to_dataset_features(joints, ACTION),
        **DEFAULT_FEATURES,
    }


def check_fits(dataset: Path, header: Header) -> None:
    """Raises BadInput when the dataset on disk was recorded with another robot, rate or set of cameras."""
    if not (dataset / INFO_PATH).exists():
        return
    info = load_info(dataset)
    problems = []
    if info.fps != header.fps:
        problems.append(f"it has {info.fps} rows a second, this station records {header.fps}")
    wanted, found = features(header), info.features
    for key in sorted(wanted.keys() | found.keys()):
        if key not in found:
            problems.append(f"it has no {key}")
        elif key not in wanted:
            problems.append(f"it has {key}, this station has not")
        elif tuple(wanted[key]["shape"]) != tuple(found[key]["shape"]):
            problems.append(f"its {key} has shape {list(found[key]['shape'])}, here {list(wanted[key]['shape'])}")
    if problems:
        raise BadInput(
            f"The dataset {dataset.name} does not fit this station: {'; '.join(problems)}.",
            "Set recording.dataset to a new name.",
        )


def stage(episode: Episode, dataset: Path, disk: Disk) -> Path:
    """Prepare everything in a folder of its own. Returns it; until `apply` the dataset is untouched."""
    return _Stage(episode, dataset, disk).build()


def apply(folder: Path, dataset: Path, disk: Disk) -> int:
    """Carry out a redo record; may be repeated any number of times. Returns the episode's index."""
    redo = read_redo(folder)
    if redo is None:
        raise OSError(f"{folder} holds no redo record")
    *moves, last = redo.moves
    folders: dict[Path, None] = {}
    for move in moves:
        _move(folder / move.staged, dataset / move.target, disk)
        folders[(dataset / move.target).parent] = None
    for changed in folders:
        disk.sync_folder(changed)
    _move(folder / last.staged, dataset / last.target, disk)
    disk.sync_folder((dataset / last.target).parent)
    return redo.episode


def _move(staged: Path, target: Path, disk: Disk) -> None:
    if staged.exists():  # else it was moved before the kill
        disk.make_folder(target.parent)
        disk.rename(staged, target)


def read_redo(folder: Path) -> Redo | None:
    try:
        return msgspec.json.decode((folder / REDO).read_bytes(), type=Redo)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def redo_is_current(folder: Path, redo: Redo, dataset: Path) -> bool:
    """False when someone else added episodes since: then the episode has to be staged again from its journal."""
    if not (folder / redo.moves[-1].staged).exists():
        return True  # info.json was the last to move: nothing is left to do
    path = dataset / INFO_PATH
    return (load_info(dataset).total_episodes if path.exists() else 0) == redo.base_episodes


@dataclass
class _Tail:
    """Where the dataset ends: what the next episode's numbers follow from."""

    episodes: int = 0
    frames: int = 0
    files: dict[str, tuple[int, int]] = field(default_factory=dict)  # column prefix -> chunk, file


def _tail(dataset: Path, info: DatasetInfo) -> _Tail:
    """Reads the last metadata file only: lerobot's own loader reads all of them, and caches them on disk."""
    if not info.total_episodes:
        return _Tail()
    last: dict[str, Any] = {}
    for path in sorted((dataset / "meta" / "episodes").glob("*/*.parquet"), reverse=True):
        table = pq.read_table(path)
        counted = table.filter(pa.compute.less(table["episode_index"], info.total_episodes))
        if counted.num_rows:
            last = max(counted.to_pylist(), key=lambda row: int(row["episode_index"]))
            break
    files = {
        column.removesuffix("/chunk_index"): (int(value), int(last[column.replace("chunk_index", "file_index")]))
        for column, value in last.items()
        if column.endswith("/chunk_index")
    }
    return _Tail(info.total_episodes, int(last["dataset_to_index"]), files)


class _Stage:
    def __init__(self, episode: Episode, dataset: Path, disk: Disk) -> None:
        self._episode = episode
        self._header = episode.header
        self._dataset = dataset
        self._disk = disk
        self._features = features(episode.header)
        self._folder = dataset / f"{STAGE_PREFIX}{episode.header.id}-{uuid.uuid4().hex[:6]}"
        self._moves: list[Move] = []
        if (dataset / INFO_PATH).exists():
            check_fits(dataset, episode.header)
            self._info = load_info(dataset)
        else:
            self._info = create_empty_dataset_info(
                CODEBASE_VERSION, self._header.fps, self._features, use_videos=True, robot_type=self._header.robot
            )
        self._tail = _tail(dataset, self._info)
        self._length = len(episode.rows)

    def build(self) -> Path:
        self._disk.make_folder(self._folder)
        tasks, task_index = self._tasks()
        stats = self._data(task_index)
        self._episode_row(stats, self._videos())
        self._sidecars()
        self._once("README.md", self._card)
        self._station()
        self._write(DEFAULT_TASKS_PATH, _parquet(pa.Table.from_pandas(tasks)))
        before = load_stats(self._dataset) if self._info.total_episodes else None
        total = aggregate_stats([before, stats]) if before else stats
        self._write(STATS_PATH, as_json(serialize_dict(total)))
        self._write_info(len(tasks))
        self._disk.sync_folder(self._folder)
        redo = Redo(self._header.id, self._tail.episodes, self._info.total_episodes - 1, tuple(self._moves))
        self._disk.replace(self._folder / REDO, msgspec.json.encode(redo))
        return self._folder

    def _write(self, target: str, data: bytes) -> None:
        self._disk.write(self._folder / self._staged(target), data)

    def _staged(self, target: str) -> str:
        name = f"{len(self._moves):02d}"
        self._moves.append(Move(name, target))
        return name

    def _next(self, prefix: str) -> tuple[int, int]:
        before = self._tail.files.get(prefix)
        return update_chunk_file_indices(*before, self._info.chunks_size) if before else (0, 0)

    def _data(self, task_index: int) -> dict[str, Any]:
        """The episode's rows; returns the statistics of all its features."""
        rows, count = self._episode.rows, self._length
        columns: dict[str, Any] = {
            "observation.state": np.array([row.measured for row in rows], np.float32),
            "action": np.array([row.sent for row in rows], np.float32),
            # As lerobot writes it: row number over rate. The real times are in the sidecar.
            "timestamp": (np.arange(count) / self._header.fps).astype(np.float32),
            "frame_index": np.arange(count),
            "episode_index": np.full(count, self._tail.episodes),
            "index": np.arange(self._tail.frames, self._tail.frames + count),
            "task_index": np.full(count, task_index),
        }
        schema = get_hf_features_from_features(self._features).arrow_schema
        table = pa.Table.from_pydict({name: columns[name].tolist() for name in schema.names}, schema=schema)
        chunk, file = self._next("data")
        self._write(self._info.data_path.format(chunk_index=chunk, file_index=file), _parquet(table))
        stats: dict[str, Any] = compute_episode_stats(columns, self._features)
        for view in self._header.views:
            stats[view.key] = self._episode.image_stats[view.camera]
        return stats

    def _videos(self) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for view in self._header.views:
            chunk, file = self._next(f"videos/{view.key}")
            target = str(self._info.video_path).format(video_key=view.key, chunk_index=chunk, file_index=file)
            source = self._episode.videos[view.camera]
            self._disk.link(source, self._folder / self._staged(target))
            columns |= {
                f"videos/{view.key}/chunk_index": chunk,
                f"videos/{view.key}/file_index": file,
                f"videos/{view.key}/from_timestamp": 0.0,
                f"videos/{view.key}/to_timestamp": self._length / self._header.fps,
            }
            if "info" not in self._info.features[view.key]:
                encoder = encoder_config(self._header.vcodec, self._header.crf)
                self._info.features[view.key]["info"] = get_video_info(source, video_encoder=encoder)
        return columns

    def _tasks(self) -> tuple[pd.DataFrame, int]:
        task = self._header.task
        if self._info.total_tasks:
            tasks = load_tasks(self._dataset).iloc[: self._info.total_tasks]
        else:
            tasks = pd.DataFrame({"task_index": pd.Series([], dtype="int64")}, index=pd.Index([], name="task"))
        if task not in tasks.index:
            tasks.loc[task] = len(tasks)
        return tasks, int(tasks.loc[task, "task_index"])

    def _episode_row(self, stats: dict[str, Any], videos: dict[str, Any]) -> None:
        data, meta = self._next("data"), self._next("meta/episodes")
        row = {
            "episode_index": self._tail.episodes,
            "tasks": [self._header.task],
            "length": self._length,
            "data/chunk_index": data[0],
            "data/file_index": data[1],
            "dataset_from_index": self._tail.frames,
            "dataset_to_index": self._tail.frames + self._length,
            **videos,
            **{key: np.asarray(value).tolist() for key, value in flatten_dict({"stats": stats}).items()},
            "meta/episodes/chunk_index": meta[0],
            "meta/episodes/file_index": meta[1],
        }
        target = DEFAULT_EPISODES_PATH.format(chunk_index=meta[0], file_index=meta[1])
        self._write(target, _parquet(pa.Table.from_pylist([row])))

    def _sidecars(self) -> None:
        self._write(str(sidecar_path(self._tail.episodes)), as_json(summary(self._episode, self._tail.episodes)))
        self._write(str(frames_path(self._tail.episodes)), _parquet(frames(self._episode)))

    def _once(self, target: str, content: Any) -> None:
        if not (self._dataset / target).exists():
            self._write(target, content())

    def _card(self) -> bytes:
        views = "\n".join(f"- `{view.key}` is the view {view.name}" for view in self._header.views)
        card = create_lerobot_dataset_card(
            tags=["lerobot", "so-agent", self._header.robot],
            dataset_description=f"Recorded by so-agent on the station {self._header.station}.\n\n{views}",
            dataset_structure="See [meta/info.json](meta/info.json); real capture times are in meta/so_agent.",
        )
        return str(card).encode()

    def _station(self) -> None:
        content = as_json(
            {
                "station": self._header.station,
                "robot": self._header.robot,
                "views": {view.name: view.key for view in self._header.views},
                "agent_version": self._header.agent_version,
                "lerobot_version": version("lerobot"),
                "config_hash": self._header.config_hash,
            }
        )
        path = self._dataset / STATION_PATH
        if not path.exists() or path.read_bytes() != content:
            self._write(str(STATION_PATH), content)

    def _write_info(self, tasks: int) -> None:
        self._info.total_episodes = self._tail.episodes + 1
        self._info.total_frames = self._tail.frames + self._length
        self._info.total_tasks = tasks
        self._info.splits = {"train": f"0:{self._info.total_episodes}"}
        self._write(INFO_PATH, json.dumps(self._info.to_dict(), indent=4, ensure_ascii=False).encode())


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="snappy", use_dictionary=True)
    return bytes(sink.getvalue())
