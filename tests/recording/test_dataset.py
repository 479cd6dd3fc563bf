"""What lies in a committed dataset, and what people and programs read from it."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot.datasets.compute_stats import get_feature_stats
from lerobot.datasets.dataset_tools import delete_episodes

from agent.config import StationConfig
from agent.errors import BadInput
from agent.messages import Limit
from agent.robot.recording.check import check
from agent.robot.recording.durable import Disk
from agent.robot.recording.episode import Recording
from agent.robot.recording.index import DatasetIndex, frames_path, sidecar_path
from agent.robot.recording.journal import Finished, Journal, View
from agent.robot.recording.pictures import draw
from agent.robot.recording.repair import repair
from agent.robot.recording.video import ImageStats
from tests.recording.made import aligned, header, journal, numbers, opened
from tests.recording.synthetic import picture


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of 12 rows."""
    folder = tmp_path_factory.mktemp("station")
    arm = {"model": "so101", "follower": {"port": "/dev/none", "id": "follower"}, "calibration_dir": str(folder)}
    config = StationConfig(station="test", state_dir=folder, robot=arm)  # type: ignore[arg-type]
    for number in range(3):
        journal(config.paths.journal, 12, first=100 * number + 1, number=number, task=f"task {number % 2}")
    repair(config)
    return config.paths.dataset


@pytest.fixture
def dataset(recorded: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    return shutil.copytree(recorded, tmp_path / "episodes")


def test_the_card_carries_the_tag_and_the_views(dataset: Path) -> None:
    card = (dataset / "README.md").read_text()
    assert "- lerobot" in card
    assert "`observation.images.front` is the view OBS_IMAGE_1" in card


def test_the_standard_view_names_are_kept_with_the_dataset(dataset: Path) -> None:
    kept = json.loads((dataset / "meta" / "so_agent.json").read_text())
    assert kept["views"] == {
        "OBS_IMAGE_1": "observation.images.front",
        "OBS_IMAGE_2": "observation.images.wrist",
    }
    assert kept["station"] == "test"


def test_an_episode_can_be_looked_up_without_lerobot_or_torch(dataset: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from agent.robot.recording.index import DatasetIndex\n"
        f"index = DatasetIndex(Path({str(dataset)!r}))\n"
        "assert [item.episode for item in index.list()] == [0, 1, 2]\n"
        "assert index.show(1)['task'] == 'task 1'\n"
        "heavy = {'torch', 'lerobot', 'pyarrow', 'numpy', 'av'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_the_list_has_the_public_shape(dataset: Path) -> None:
    [first, *_] = DatasetIndex(dataset).list()
    assert msgspec.to_builtins(first) == {
        "episode": 0,
        "task": "task 0",
        "frames": 12,
        "seconds": 0.4,
        "source": "teleop",
        "success": True,
        "salvaged": False,
        "deleted": False,
    }


def test_a_station_without_a_dataset_has_no_episodes(tmp_path: Path) -> None:
    index = DatasetIndex(tmp_path / "none")
    assert (index.list(), index.count(), check(tmp_path / "none")) == ([], 0, [])
    with pytest.raises(BadInput, match="no episodes yet"):
        index.show(0)


def test_statistics_are_those_that_lerobot_would_have_computed(dataset: Path) -> None:
    opened_dataset = opened(dataset)
    actions = np.stack([opened_dataset[row]["action"].numpy() for row in range(len(opened_dataset))])
    for key in ("min", "max"):
        np.testing.assert_allclose(opened_dataset.meta.stats["action"][key], getattr(actions, key)(axis=0))
    np.testing.assert_allclose(opened_dataset.meta.stats["action"]["mean"], actions.mean(axis=0), rtol=1e-5)
    assert opened_dataset.meta.stats["observation.images.front"]["mean"].shape == (3, 1, 1)
    images = np.stack([picture(number, 64, 48) for number in range(40)])
    mine = ImageStats()
    for image in images:
        mine.add(image)
    theirs = get_feature_stats(images.transpose(0, 3, 1, 2), axis=(0, 2, 3), keepdims=True)
    result = mine.result()
    assert result.keys() == theirs.keys()
    for key, value in theirs.items():
        expected = value if key == "count" else value[0] / 255
        np.testing.assert_allclose(result[key], expected, atol=1e-3)


def test_lerobots_own_tools_go_on_working_with_the_dataset(dataset: Path, tmp_path: Path) -> None:
    shorter = delete_episodes(opened(dataset), [1], output_dir=tmp_path / "shorter", repo_id="station/shorter")
    assert shorter.num_episodes == 2
    assert numbers(opened(tmp_path / "shorter")) == [*range(1, 13), *range(201, 213)]


def test_changes_by_the_safety_filter_are_kept_row_by_row(make_config: Any) -> None:
    config = make_config()
    head = header(source="policy")
    made = Journal.create(config.paths.journal, head, Disk())
    recording = Recording(made, head, Disk())
    for row in range(6):
        item = aligned(row + 1, row, head)
        limits = (Limit("elbow_flex", "speed", 90.0, 50.0),) if row in (2, 3) else ()
        recording.add(replace(item, tick=msgspec.structs.replace(item.tick, limits=limits)), 0)
    recording.close()
    made.mark_finished(Finished(None, "finished"), Disk())
    repair(config)
    facts = DatasetIndex(config.paths.dataset).show(0)
    assert facts["limits"] == {"elbow_flex speed": 2}
    assert facts["source"] == "intervention"  # a policy's episode in which the leader moved the arm
    assert facts["limited_rows"] == 2
    frames = pq.read_table(config.paths.dataset / frames_path(0)).to_pydict()
    assert frames["limits"][2] == ["elbow_flex speed: 90 -> 50"]
    assert frames["limits"][0] == []


def test_damage_is_found_and_named(dataset: Path) -> None:
    assert check(dataset) == []
    (dataset / frames_path(0)).unlink()
    (dataset / "videos/observation.images.wrist/chunk-000/file-001.mp4").unlink()
    short = dataset / "videos/observation.images.front/chunk-000/file-002.mp4"
    short.write_bytes(short.read_bytes()[:-600])  # its index
    problems = check(dataset)
    assert len(problems) == 3
    assert "frames-000000.parquet is missing" in problems[0]
    assert "file-001.mp4 is missing" in problems[1]
    assert "file-002.mp4 cannot be read" in problems[2]


def test_an_episode_marked_by_a_program_keeps_everything_else(dataset: Path) -> None:
    before = json.loads((dataset / sidecar_path(2)).read_text())
    DatasetIndex(dataset).mark(2, False)
    assert json.loads((dataset / sidecar_path(2)).read_text()) == before | {"success": False}


def test_pictures_of_an_episode_show_cameras_and_joints(dataset: Path, tmp_path: Path) -> None:
    cameras, joints = draw(dataset, 1, tmp_path / "pictures")
    assert (cameras.name, joints.name) == ("episode-001-cameras.png", "episode-001-joints.png")
    for path in (cameras, joints):
        image = cv2.imread(str(path))
        assert image is not None
        assert image.shape[1] > 600
        assert image.std() > 10  # not blank
    with pytest.raises(BadInput, match="no episode 3"):
        draw(dataset, 3, tmp_path)


@pytest.mark.parametrize("vcodec", ["hevc", "libsvtav1"])
def test_the_other_codecs_can_be_salvaged_and_read_too(make_config: Any, vcodec: str) -> None:
    config = make_config()
    views = (View("front", "OBS_IMAGE_1", 128, 96, 30),)
    journal(config.paths.journal, 16, finished=False, vcodec=vcodec, crf=10, views=views)
    assert repair(config).salvaged == [0]
    assert check(config.paths.dataset) == []
    assert numbers(opened(config.paths.dataset)) == list(range(1, 17))
