"""What is in a dataset, for the daemon and the command line: fast, and without lerobot or torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.errors import BadInput
from agent.robot.recording.durable import Disk, as_json

STATION_PATH: Final = Path("meta/so_agent.json")
SIDECARS: Final = Path("meta/so_agent")


def sidecar_path(episode: int) -> Path:
    """The episode's own facts, relative to the dataset."""
    return SIDECARS / f"episode-{episode:06d}.json"


def frames_path(episode: int) -> Path:
    """The episode's real times, one record a row, relative to the dataset."""
    return SIDECARS / f"frames-{episode:06d}.parquet"


class EpisodeSummary(msgspec.Struct, frozen=True):
    """One line of `so-agent episodes list --json`. The shape is an interface."""

    episode: int
    task: str
    frames: int
    seconds: float
    source: str  # teleop, policy, intervention; "unknown" for episodes that another tool recorded
    success: bool | None
    salvaged: bool
    deleted: bool = False  # hidden from lists and training until it is restored; every file of it is still there


class DatasetIndex:
    """Reads one dataset folder. Holds nothing: every call sees what is committed now."""

    def __init__(self, dataset: Path) -> None:
        self.dataset = dataset

    def count(self) -> int:
        """Committed episodes; 0 where there is no dataset yet."""
        return int(self._info().get("total_episodes", 0))

    def list(self, deleted: bool = False) -> list[EpisodeSummary]:
        """In the order of the dataset; with `deleted` also those that a person has deleted."""
        return [summary for summary in self._all() if deleted or not summary.deleted]

    def _all(self) -> Iterator[EpisodeSummary]:
        foreign: dict[int, EpisodeSummary] | None = None
        for number in range(self.count()):
            path = self.dataset / sidecar_path(number)
            if path.exists():
                yield msgspec.json.decode(path.read_bytes(), type=EpisodeSummary)
                continue
            foreign = foreign if foreign is not None else self._from_lerobot()
            if number in foreign:
                yield foreign[number]

    def show(self, episode: int) -> dict[str, Any]:
        """Everything known about one episode. Raises BadInput when there is none of that number."""
        self._require(episode)
        path = self.dataset / sidecar_path(episode)
        if path.exists():
            facts: dict[str, Any] = json.loads(path.read_bytes())
            return facts
        found: dict[str, Any] = msgspec.to_builtins(self._from_lerobot()[episode])
        return found

    def mark(self, episode: int, success: bool | None) -> None:
        """Judge an episode afterwards; readers see the old or the new judgement, never half of one."""
        self._change(episode, success=success)

    def delete(self, episode: int) -> None:
        """Hide an episode from lists and training. Its number stays taken, and nothing of it is removed."""
        self._change(episode, deleted=True)

    def restore(self, episode: int) -> None:
        self._change(episode, deleted=False)

    def _change(self, episode: int, **changes: Any) -> None:
        facts = self.show(episode) | changes
        Disk().replace(self.dataset / sidecar_path(episode), as_json(facts))

    def _require(self, episode: int) -> None:
        count = self.count()
        if not 0 <= episode < count:
            have = f"episodes 0 to {count - 1}" if count else "no episodes yet"
            raise BadInput(f"There is no episode {episode}.", f"The dataset {self.dataset.name} has {have}.")

    def _info(self) -> dict[str, Any]:
        try:
            info: dict[str, Any] = json.loads((self.dataset / "meta" / "info.json").read_bytes())
        except FileNotFoundError:
            return {}
        return info

    def _from_lerobot(self) -> dict[int, EpisodeSummary]:
        """Episodes that carry no facts of ours: recorded or rewritten by lerobot's own tools."""
        import pyarrow.parquet as pq  # 60 ms that a dataset of our own never costs

        fps = float(self._info().get("fps", 30))
        found = {}
        for path in sorted((self.dataset / "meta" / "episodes").glob("*/*.parquet")):
            for row in pq.read_table(path, columns=["episode_index", "tasks", "length"]).to_pylist():
                number, frames = int(row["episode_index"]), int(row["length"])
                task = ", ".join(row["tasks"])
                found[number] = EpisodeSummary(number, task, frames, round(frames / fps, 3), "unknown", None, False)
        return found
