"""Where the pictures and rows of one episode lie in a LeRobotDataset v3, for a page that plays them again."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow.compute as pc
import pyarrow.parquet as pq

from agent.errors import BadInput

VIDEO_PREFIX: Final = "observation.images."
STATE: Final = "observation.state"
ACTION: Final = "action"
CHUNK_FILES: Final = 1000
"""lerobot's default `chunks_size`: where one file holds one episode, this says which."""


@dataclass(frozen=True)
class Clip:
    """An episode's part of one camera's video file. Seconds."""

    camera: str
    path: Path
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Replay:
    """All that is needed to look at an episode again. `state` and `action` are `[row][joint]`; times begin at 0."""

    fps: float
    frames: int
    clips: tuple[Clip, ...]
    times_s: list[float]
    state: list[list[float]]
    action: list[list[float]]


class Dataset:
    """Reads; holds nothing, so that every call sees what is committed now."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def clip(self, episode: int, camera: str) -> Clip:
        """Raises BadInput when there is no such episode or camera."""
        info, row = self._info(), self._row(episode)
        if f"{VIDEO_PREFIX}{camera}" not in info["features"]:
            raise BadInput(f"Episode {episode} has no camera {camera[:60]!r}.")
        return self._clip(info, row, camera)

    def replay(self, episode: int, points: int) -> Replay:
        """At most `points` rows, evenly chosen. Raises BadInput when there is no such episode."""
        info, row = self._info(), self._row(episode)
        cameras = [name.removeprefix(VIDEO_PREFIX) for name in info["features"] if name.startswith(VIDEO_PREFIX)]
        path = self._inside(info["data_path"], row["data/chunk_index"], row["data/file_index"])
        table = pq.read_table(path, columns=["episode_index", STATE, ACTION])
        table = table.filter(pc.equal(table["episode_index"], episode))
        stride = -(-len(table) // points) if points else 1
        chosen = table.take(list(range(0, len(table), stride)))
        fps = float(info["fps"])
        return Replay(
            fps=fps,
            frames=len(table),
            clips=tuple(self._clip(info, row, camera) for camera in cameras),
            times_s=[round(index / fps, 4) for index in range(0, len(table), stride)],
            state=_rounded(chosen[STATE].to_pylist()),
            action=_rounded(chosen[ACTION].to_pylist()),
        )

    def _clip(self, info: dict[str, Any], row: dict[str, Any], camera: str) -> Clip:
        key = f"{VIDEO_PREFIX}{camera}"
        at = f"videos/{key}"
        path = self._inside(info["video_path"], row[f"{at}/chunk_index"], row[f"{at}/file_index"], key)
        return Clip(camera, path, float(row[f"{at}/from_timestamp"]), float(row[f"{at}/to_timestamp"]))

    def _inside(self, pattern: str, chunk: int, file: int, key: str = "") -> Path:
        """The path that the dataset gives, as long as it lies in the dataset."""
        path = (self._folder / pattern.format(chunk_index=chunk, file_index=file, video_key=key)).resolve()
        if not path.is_relative_to(self._folder.resolve()):
            raise BadInput(f"The dataset {self._folder.name} names a file outside of itself.", "Who made it?")
        return path

    def _info(self) -> dict[str, Any]:
        try:
            info: dict[str, Any] = json.loads((self._folder / "meta" / "info.json").read_bytes())
        except FileNotFoundError:
            raise BadInput("Nothing has been recorded yet.") from None
        return info

    def _row(self, episode: int) -> dict[str, Any]:
        """What `meta/episodes` says about it. One file an episode is looked for where it then must be."""
        folder = self._folder / "meta" / "episodes"
        likely = folder / f"chunk-{episode // CHUNK_FILES:03d}" / f"file-{episode % CHUNK_FILES:03d}.parquet"
        for path in (*([likely] if likely.exists() else []), *sorted(folder.glob("*/*.parquet"))):
            table = pq.read_table(path)
            found = table.filter(pc.equal(table["episode_index"], episode)).to_pylist()
            if found:
                row: dict[str, Any] = found[0]
                return row
        raise BadInput(f"There is no episode {episode}.", "See `so-agent episodes list`.")


def _rounded(rows: list[list[float]]) -> list[list[float]]:
    return [[round(value, 2) for value in row] for row in rows]
