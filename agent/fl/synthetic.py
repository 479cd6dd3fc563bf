"""A dataset that is drawn, for a simulation without any of one's own: discs on a table, and an arm that goes to one.

It is no robot and no camera, only enough like them that a policy can learn something from it within minutes, on any
computer, without a network. Everything depends on numbers alone, so that all simulated stations see the same.
"""

import fcntl
import json
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agent.messages import JOINTS

VERSION: Final = 1
"""Of what is drawn: another one gets another folder."""

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "so-agent"

EPISODES: Final = 60
ROWS: Final = 40
FPS: Final = 30
SIZE: Final = 96
SEED: Final = 7

COLOURS: Final = {"red": (214, 48, 49), "blue": (9, 90, 227)}
TABLE: Final = (206, 196, 180)
ARM: Final = (60, 60, 66)
BASE: Final = np.array([0.5, 0.95])  # of the picture's width and height
NEAREST, FARTHEST, WIDEST_DEG = 0.35, 0.75, 50.0
DISC: Final = 0.07
APART: Final = 0.25
REST: Final = 0.3  # of an episode the arm stays where it arrived

type Picture = NDArray[np.uint8]


def drawn(cache: Path = CACHE, episodes: int = EPISODES) -> Path:
    """The folder of the dataset; drawn now if it is not there. Several processes may ask at once."""
    folder = cache / f"drawn-{VERSION}-{episodes}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            new = folder.with_name(f".{folder.name}.new")
            shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
            _draw(new, episodes)
            new.rename(folder)
    return folder


def _draw(folder: Path, episodes: int) -> None:
    import datasets
    from lerobot.datasets import LeRobotDataset

    from agent.fl.partition import VIDEO_BACKEND

    datasets.disable_progress_bars()
    pictures = {"dtype": "image", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}
    joints = {"dtype": "float32", "shape": (len(JOINTS),), "names": [f"{joint}.pos" for joint in JOINTS]}
    views = {"OBS_IMAGE_1": "observation.images.front", "OBS_IMAGE_2": "observation.images.wrist"}
    dataset = LeRobotDataset.create(
        f"station/{folder.name}",
        FPS,
        {"observation.state": joints, "action": joints} | dict.fromkeys(views.values(), pictures),
        root=folder,
        robot_type="so101_follower",
        use_videos=False,
        video_backend=VIDEO_BACKEND,  # lerobot else looks for another one, at length
    )
    dice = np.random.default_rng(SEED)
    for number in range(episodes):
        colour = list(COLOURS)[number % len(COLOURS)]
        discs = _lay(dice)
        for row in _reach(discs[colour], dice):
            tip = _tip(row[0])
            front = _picture(discs, tip)
            dataset.add_frame(
                {
                    "observation.state": row[0],
                    "action": row[1],
                    views["OBS_IMAGE_1"]: front,
                    views["OBS_IMAGE_2"]: _closer(front, tip),
                    "task": f"touch the {colour} disc",
                }
            )
        dataset.save_episode()
    dataset.finalize()
    (folder / "meta" / "so_agent.json").write_text(json.dumps({"views": views}) + "\n", encoding="utf-8")


def _lay(dice: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Where the discs lie, apart from each other and within reach."""
    while True:
        places = {}
        for colour in COLOURS:
            angle = np.deg2rad(dice.uniform(-WIDEST_DEG, WIDEST_DEG))
            length = dice.uniform(NEAREST, FARTHEST)
            places[colour] = BASE + length * np.array([np.sin(angle), -np.cos(angle)])
        first, second = places.values()
        if np.linalg.norm(first - second) > APART:
            return places


def _reach(
    goal: NDArray[np.float64], dice: np.random.Generator
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """State and action of each row: from somewhere to the goal with least jerk, then rest."""
    start = np.array([dice.uniform(-WIDEST_DEG, WIDEST_DEG), dice.uniform(NEAREST, FARTHEST)])
    offset = goal - BASE
    end = np.array([np.rad2deg(np.arctan2(offset[0], -offset[1])), np.linalg.norm(offset)])
    time = np.clip(np.arange(ROWS + 1) / (ROWS * (1 - REST)), 0, 1)
    way = 10 * time**3 - 15 * time**4 + 6 * time**5
    path = [_joints(*(start + part * (end - start))) for part in way]
    return list(pairwise(path))


def _joints(pan_deg: float, length: float) -> NDArray[np.float32]:
    """As an arm might hold them whose fingertip is so far from its base."""
    part = (length - NEAREST) / (FARTHEST - NEAREST)
    return np.array([pan_deg, -60 + 70 * part, 60 - 80 * part, 70 - 20 * part, 0, 5], np.float32)


def _tip(joints: NDArray[np.float32]) -> NDArray[np.float64]:
    angle = np.deg2rad(float(joints[0]))
    length = NEAREST + (FARTHEST - NEAREST) * (float(joints[1]) + 60) / 70
    return BASE + length * np.array([np.sin(angle), -np.cos(angle)])


def _picture(discs: dict[str, NDArray[np.float64]], tip: NDArray[np.float64]) -> Picture:
    import cv2

    image: Picture = np.full((SIZE, SIZE, 3), TABLE, np.uint8)
    for colour, place in discs.items():
        cv2.circle(image, _pixel(place), round(DISC * SIZE), COLOURS[colour], -1, cv2.LINE_AA)
    cv2.line(image, _pixel(BASE), _pixel(tip), ARM, 4, cv2.LINE_AA)
    cv2.circle(image, _pixel(tip), 3, (250, 200, 40), -1, cv2.LINE_AA)
    return image


def _closer(image: Picture, tip: NDArray[np.float64]) -> Picture:
    """What a camera at the wrist sees: the neighbourhood of the fingertip, twice as large."""
    import cv2

    x, y = _pixel(tip)
    quarter = SIZE // 4
    padded = cv2.copyMakeBorder(image, quarter, quarter, quarter, quarter, cv2.BORDER_CONSTANT, value=TABLE)
    crop = padded[y : y + 2 * quarter, x : x + 2 * quarter]
    return np.asarray(cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR), np.uint8)


def _pixel(place: NDArray[np.float64]) -> tuple[int, int]:
    x, y = np.clip(np.rint(place * SIZE).astype(int), 0, SIZE - 1)
    return int(x), int(y)
