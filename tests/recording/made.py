"""Episodes made directly, without processes: a journal as a recorder leaves it."""

from pathlib import Path
from typing import Any

from lerobot.datasets import LeRobotDataset

from agent.messages import EpisodeSource, Source, Tick
from agent.robot.recording.align import Aligned, Seen, Shot
from agent.robot.recording.durable import Disk
from agent.robot.recording.episode import Recording
from agent.robot.recording.journal import Finished, Header, Journal, View
from tests.recording.synthetic import joints, number_in, picture

FPS = 30
VIEWS = (View("front", "OBS_IMAGE_1", 64, 48, FPS), View("wrist", "OBS_IMAGE_2", 48, 32, FPS))


def header(number: int = 0, dataset: str = "episodes", task: str = "move", **changes: Any) -> Header:
    values: dict[str, Any] = {
        "id": f"20260101T0000{number:02d}.000-1",
        "dataset": dataset,
        "task": task,
        "source": EpisodeSource.TELEOP,
        "fps": FPS,
        "started_at": "2026-01-01T00:00:00Z",
        "views": VIEWS,
        "vcodec": "h264",
        "crf": 23,
        "robot": "so101_follower",
        "station": "test",
        "agent_version": "0",
        "config_hash": "0",
    }
    return Header(**(values | changes))


def journal(folder: Path, rows: int, first: int = 1, finished: bool = True, **what: Any) -> Journal:
    """Row i shows `first + i`, in its joints and in every picture."""
    head = header(**what)
    made = Journal.create(folder, head, Disk())
    recording = Recording(made, head, Disk())
    for row in range(rows):
        recording.add(aligned(first + row, row, head), 0)
    recording.close()
    if finished:
        made.mark_finished(Finished(True, "finished"), Disk())
    return made


def aligned(number: int, row: int, head: Header) -> Aligned[Any]:
    due_ns = row * 1_000_000_000 // head.fps
    tick = Tick(
        row, due_ns, due_ns, drive="follow", source=Source.LEADER, measured=joints(number), sent=joints(number, 0.5)
    )  # type: ignore[arg-type]
    seen = {}
    for view in head.views:
        image = picture(number, view.width, view.height)
        seen[view.camera] = Seen(Shot(number, due_ns - 1_000_000, image.data), 1_000_000, False)
    return Aligned(tick, seen)


def opened(dataset: Path) -> LeRobotDataset:
    # Named, because lerobot tries to load torchcodec anew for every dataset, half a second where it does not fit.
    return LeRobotDataset("station/episodes", root=dataset, video_backend="pyav")


def numbers(dataset: LeRobotDataset, every: int = 1) -> list[int]:
    """What each row shows, after checking that its joints and all its pictures agree."""
    shown = []
    for index in range(0, len(dataset), every):
        row = dataset[index]
        found = {number_in(row[key]) for key in dataset.meta.video_keys}
        found.add(round(row["observation.state"][0].item() / 0.125))
        assert len(found) == 1, f"row {index} disagrees: {found}"
        shown.append(found.pop())
    return shown
