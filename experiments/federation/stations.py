"""Each station's own dataset: its part of the table, and mostly one disc.

A plain LeRobotDataset of the recorded rows that the demo policy learns from, with the pictures at the size to which
the policy would shrink them, so that a step costs no decoding of videos.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from datasets import disable_progress_bars
from lerobot.datasets import LeRobotDataset, merge_datasets
from numpy.typing import NDArray

from agent.fl.partition import VIDEO_BACKEND
from agent.messages import JOINTS
from experiments.demo_policy.episodes import Episodes
from experiments.demo_policy.recipe import CAMERAS, CONTROL_HZ, task_text
from experiments.federation.recipe import Share

VIEWS: Final = {f"OBS_IMAGE_{number}": f"observation.images.{name}" for number, name in enumerate(CAMERAS, start=1)}


def divide(situations: list[tuple[str, str]], shares: tuple[Share, ...], seed: int) -> dict[str, list[int]]:
    """Numbers of the episodes that each station has. All of its own part of the table that name its own disc, and a
    few that name another; the rest is nobody's."""
    dice = np.random.default_rng(seed)
    found = {}
    for share in shares:
        here = [number for number, (part, _) in enumerate(situations) if part == share.part]
        own = [number for number in here if situations[number][1] == task_text(f"{share.disc} disc")]
        others = [number for number in here if number not in own]
        few = dice.permutation(others)[: round(share.others * len(others))].tolist()
        found[share.part] = sorted(own + few)
    return found


def write(
    folder: Path, rows: Episodes, episodes: dict[str, list[int]], progress: Callable[[str, int, int], None]
) -> list[Path]:
    """A dataset for each station below `folder`, each there at once or not at all."""
    written = []
    for station, numbers in episodes.items():
        target = folder / station
        written.append(target)
        if target.exists():
            continue
        unfinished = folder / f".{station}.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        _write(unfinished, rows, numbers, lambda done, of, station=station: progress(station, done, of))
        unfinished.rename(target)
    return written


def merge(datasets: list[Path], target: Path) -> Path:
    """All of them in one."""
    if not target.exists():
        unfinished = target.with_name(f".{target.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        opened = [LeRobotDataset(f"station/{path.name}", root=path, video_backend=VIDEO_BACKEND) for path in datasets]
        merge_datasets(opened, f"station/{target.name}", unfinished)
        _say_views(unfinished)
        unfinished.rename(target)
    return target


def _write(folder: Path, rows: Episodes, numbers: list[int], progress: Callable[[int, int], None]) -> None:
    pictures = {"dtype": "image", "shape": rows.front.shape[1:], "names": ["height", "width", "channels"]}
    joints = {"dtype": "float32", "shape": (len(JOINTS),), "names": [f"{joint}.pos" for joint in JOINTS]}
    features: dict[str, Any] = {"observation.state": joints, "action": joints} | dict.fromkeys(VIEWS.values(), pictures)
    disable_progress_bars()
    dataset = LeRobotDataset.create(
        f"station/{folder.name}",
        CONTROL_HZ,
        features,
        root=folder,
        robot_type="so101_follower",
        use_videos=False,
        video_backend=VIDEO_BACKEND,  # lerobot else looks for another one, at length
    )
    for done, number in enumerate(numbers):
        for row in np.flatnonzero(rows.episodes == number).tolist():
            dataset.add_frame(_frame(rows, row))
        dataset.save_episode()
        progress(done + 1, len(numbers))
    dataset.finalize()
    _say_views(folder)


def _say_views(folder: Path) -> None:
    (folder / "meta" / "so_agent.json").write_text(json.dumps({"views": VIEWS}) + "\n", encoding="utf-8")


def _frame(rows: Episodes, row: int) -> dict[str, Any]:
    images: dict[str, NDArray[np.uint8]] = {f"observation.images.{name}": getattr(rows, name)[row] for name in CAMERAS}
    return {
        "observation.state": rows.states[row],
        "action": rows.actions[row],
        "task": str(rows.texts[rows.tasks[row]]),
        **images,
    }
