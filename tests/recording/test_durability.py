"""Kills at every step: no finished episode is lost or doubled, and the dataset opens before and after the repair."""

import os
import shutil
import signal
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lerobot.configs import RGBEncoderConfig
from lerobot.datasets import LeRobotDataset

from agent.config import StationConfig
from agent.robot.recording.check import check
from agent.robot.recording.commit import stage
from agent.robot.recording.durable import Disk
from agent.robot.recording.index import DatasetIndex
from agent.robot.recording.journal import Finished, Journal, read_rows
from agent.robot.recording.repair import rebuild, repair
from agent.robot.recording.video import count_frames, cut_torn_tail
from tests.nursery import Nursery
from tests.recording.made import header, journal, numbers, opened
from tests.recording.synthetic import joints, picture

ROWS = 6


def repaired_until_killed(nursery: Nursery, config: StationConfig, at: int) -> bool:
    """Repair in a child that is killed at step `at`. True when it got through."""
    status = nursery.spawn("repair", "tests.recording.killed:repair_until", config, at=at).ended(within_s=30)
    assert status in (0, -signal.SIGKILL)
    return status == 0


@pytest.mark.parametrize(("committed_before", "stride"), [(0, 4), (1, 1)])
def test_a_commit_killed_at_any_step_is_whole_after_repair_and_opens_before(
    nursery: Nursery, make_config: Any, committed_before: int, stride: int
) -> None:
    config: StationConfig = make_config()
    for number in range(committed_before):
        journal(config.paths.journal, ROWS, first=100 * number + 1, number=number)
    repair(config)
    journal(config.paths.journal, ROWS, first=501, number=9, task="another task")
    template = config.state_dir.with_name("template")
    config.state_dir.rename(template)
    expected = [100 * number + row for number in range(committed_before) for row in range(1, ROWS + 1)]
    expected_after = [*expected, *range(501, 501 + ROWS)]
    dataset = config.paths.dataset
    at = 0
    through = False
    seen: set[str] = set()
    while not through:
        shutil.copytree(template, config.state_dir)
        through = repaired_until_killed(nursery, config, at)
        state = visible(dataset)
        if (dataset / "meta" / "info.json").exists():  # before that there is no dataset yet
            if state not in seen:
                assert numbers(opened(dataset)) in (expected, expected_after), f"killed at step {at}"
                seen.add(state)
        else:
            assert committed_before == 0
        repair(config)
        assert check(dataset) == [], f"killed at step {at}"
        if at % 12 == 0:
            assert numbers(opened(dataset)) == expected_after, f"killed at step {at}"
        assert [item.task for item in DatasetIndex(dataset).list()][committed_before:] == ["another task"]
        assert not list(config.paths.journal.iterdir())
        assert not list(dataset.glob(".*"))
        shutil.rmtree(config.state_dir)
        at += stride
    assert at > 40  # it was killed that often


def visible(dataset: Path) -> str:
    """Everything that a reader of the dataset can see."""
    files = [
        path for path in dataset.rglob("*") if path.is_file() and not path.relative_to(dataset).parts[0].startswith(".")
    ]
    return "".join(
        f"{path.relative_to(dataset)} {zlib.crc32(path.read_bytes())}\n"
        for path in sorted(files)
        if "so_agent" not in str(path)
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished journal and the same one as it was before its videos were closed."""
    folder = tmp_path_factory.mktemp("recorded")
    return journal(folder, 20, finished=False).folder


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)))
def test_files_cut_at_any_byte_give_back_a_consistent_beginning(
    recorded: Path, make_config: Any, cuts: tuple[float, float, float]
) -> None:
    config: StationConfig = make_config()
    shutil.rmtree(config.state_dir, ignore_errors=True)
    folder = config.paths.journal / recorded.name
    shutil.copytree(recorded, folder)
    for name, share in zip(("rows.log", "front.mp4", "wrist.mp4"), cuts, strict=True):
        os.truncate(folder / name, round((folder / name).stat().st_size * share))
    left = min(
        len(read_rows(folder / "rows.log")), *(whole_frames(folder / f"{name}.mp4") for name in ("front", "wrist"))
    )
    result = repair(config)
    assert not result.kept
    if left < 2:
        assert not result.salvaged
        return
    assert result.salvaged == [0]
    assert numbers(opened(config.paths.dataset)) == list(range(1, left + 1))
    [summary] = DatasetIndex(config.paths.dataset).list()
    assert summary.salvaged
    assert summary.success is None
    assert summary.frames == left


def whole_frames(path: Path) -> int:
    """How many frames the cut file still holds, counted on a copy."""
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    cut_torn_tail(copy)
    count = count_frames(copy)
    copy.unlink()
    return count


@settings(max_examples=50, deadline=None)
@given(share=st.floats(0, 1), damage=st.integers(0, 255))
def test_a_damaged_row_log_gives_back_the_rows_before_the_damage(recorded: Path, share: float, damage: int) -> None:
    rows = read_rows(recorded / "rows.log")
    data = bytearray((recorded / "rows.log").read_bytes())
    at = min(len(data) - 1, round(len(data) * share))
    data[at] ^= damage
    damaged = recorded / "damaged.log"
    damaged.write_bytes(data)
    found = read_rows(damaged)
    assert found == rows[: len(found)]
    assert damage == 0 or len(found) < len(rows)
    damaged.unlink()


def test_rows_lost_by_one_camera_are_taken_from_all(make_config: Any) -> None:
    config: StationConfig = make_config()
    made = journal(config.paths.journal, 12, finished=False)
    # As after a kill: the wrist's encoder was five frames behind.
    shorter = journal(config.paths.journal.with_name("other"), 7, finished=False)
    shutil.copyfile(shorter.folder / "wrist.mp4", made.folder / "wrist.mp4")
    assert repair(config).salvaged == [0]
    assert numbers(opened(config.paths.dataset)) == list(range(1, 8))
    assert "last 5 rows were lost" in DatasetIndex(config.paths.dataset).show(0)["ended"]


def test_an_unfinished_episode_is_discarded_where_that_is_configured(make_config: Any) -> None:
    config: StationConfig = make_config(recording={"on_crash": "discard"})
    journal(config.paths.journal, 5, number=0, finished=False)
    journal(config.paths.journal, 5, number=1, finished=True)
    result = repair(config)
    assert result.finished == [0]
    assert len(result.discarded) == 1
    assert not DatasetIndex(config.paths.dataset).list()[0].salvaged


def test_repairing_twice_changes_nothing(make_config: Any) -> None:
    config: StationConfig = make_config()
    journal(config.paths.journal, 5)
    assert repair(config)
    assert not repair(config)
    assert DatasetIndex(config.paths.dataset).count() == 1


def test_an_episode_that_does_not_fit_its_dataset_is_kept_with_the_reason(make_config: Any) -> None:
    config: StationConfig = make_config()
    journal(config.paths.journal, 5, number=0)
    repair(config)
    odd = journal(config.paths.journal, 5, number=1, fps=15)
    journal(config.paths.journal, 5, number=2)
    result = repair(config)
    assert "15" in result.kept[odd.id]
    assert result.finished == [1]
    assert odd.folder.exists()


def test_a_commit_overtaken_by_another_tool_is_made_again_from_its_journal(make_config: Any) -> None:
    """The redo record of a killed commit must not turn back what lerobot's own tools wrote since."""
    config: StationConfig = make_config()
    journal(config.paths.journal, ROWS, first=1, number=0)
    repair(config)
    made = journal(config.paths.journal, ROWS, first=101, number=1)
    episode = rebuild(made, header(1), Finished(True, "finished"))
    assert episode is not None
    stage(episode, config.paths.dataset, Disk())  # as far as a kill before the first rename got
    h264 = RGBEncoderConfig(vcodec="h264", crf=10)
    other = LeRobotDataset.resume(
        "station/episodes", root=config.paths.dataset, streaming_encoding=True, rgb_encoder=h264, video_backend="pyav"
    )
    for number in (901, 902, 903):
        other.add_frame(frame_of(number))
    other.save_episode()
    other.finalize()
    result = repair(config)
    assert result.finished == [2]
    shown = numbers(opened(config.paths.dataset))
    assert shown == [*range(1, ROWS + 1), 901, 902, 903, *range(101, 101 + ROWS)]
    assert [item.source for item in DatasetIndex(config.paths.dataset).list()] == ["teleop", "unknown", "teleop"]


def frame_of(number: int) -> dict[str, Any]:
    return {
        "observation.state": np.array(joints(number), np.float32),
        "action": np.array(joints(number, 0.5), np.float32),
        "observation.images.front": picture(number, 64, 48),
        "observation.images.wrist": picture(number, 48, 32),
        "task": "elsewhere",
    }


def test_a_journal_without_a_readable_header_is_removed(make_config: Any) -> None:
    config: StationConfig = make_config()
    folder = config.paths.journal / header().id
    folder.mkdir(parents=True)
    (folder / "header.json").write_bytes(b'{"id": "tor')
    assert repair(config).discarded == [header().id]
    assert not folder.exists()


def test_the_finished_mark_survives_and_a_torn_one_does_not_count(tmp_path: Path) -> None:
    made = journal(tmp_path, 3)
    assert made.finished() == Finished(True, "finished")
    torn = msgspec.json.encode(Finished(True, "finished"))[:-3]
    (made.folder / "finished.json").write_bytes(torn)
    assert Journal(made.folder).finished() is None
