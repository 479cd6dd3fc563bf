"""From ticks and frames on the sockets to a dataset that stock lerobot opens."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from agent.clock import NS_PER_MS
from agent.config import StationConfig
from agent.errors import BadInput, DeviceFault, Exit, Refused
from agent.messages import (
    DiscardEpisode,
    FinishEpisode,
    HideEpisode,
    MarkEpisode,
    RecorderQuery,
    RecorderState,
    StartEpisode,
)
from agent.robot.recording import free_space
from agent.robot.recording.align import NEAR_NS
from agent.robot.recording.check import check
from agent.robot.recording.index import DatasetIndex, frames_path
from agent.robot.recording.journal import journals
from tests.nursery import Nursery
from tests.recording.conftest import TWO_CAMERAS, RecorderProcess
from tests.recording.made import numbers, opened
from tests.recording.synthetic import SyntheticStation, number_in


def record(recorder: RecorderProcess, rows: int, task: str = "move", success: bool | None = True) -> int:
    recorder.start_episode(StartEpisode(task=task))
    recorder.until(lambda report: report.frames >= rows)
    before = recorder.ask(FinishEpisode(success=success)).episodes
    last = recorder.until(lambda report: report.state is RecorderState.READY and report.episodes > before).last
    assert last is not None
    assert last.outcome == "committed"
    assert last.episode is not None
    return last.episode


def test_recorded_episodes_open_in_stock_lerobot_and_frame_i_shows_tick_i(
    config: StationConfig, recorder: RecorderProcess
) -> None:
    with SyntheticStation(config):
        recorder.start()
        record(recorder, 20, "first task")
        record(recorder, 10, "second task", success=False)
        record(recorder, 10, "first task")
    dataset = opened(config.paths.dataset)
    assert dataset.num_episodes == 3
    assert len(dataset) == dataset.meta.total_frames == sum(dataset.meta.episodes["length"])
    camera_keys = ["observation.images.front", "observation.images.wrist"]
    assert dataset.meta.video_keys == camera_keys
    for index in range(len(dataset)):
        row = dataset[index]
        shown = {number_in(row[key]) for key in camera_keys}
        assert len(shown) == 1
        number = shown.pop()
        np.testing.assert_array_equal(row["observation.state"][0].item(), number * 0.125)
        np.testing.assert_array_equal(row["action"][0].item(), number * 0.125 + 0.5)
    assert dataset[0]["task"] == "first task"
    assert dataset.features["action"]["names"][0] == "shoulder_pan.pos"
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)))
    assert batch["observation.images.front"].shape == (8, 3, 96, 128)
    listed = DatasetIndex(config.paths.dataset).list()
    assert [(item.episode, item.task, item.success) for item in listed] == [
        (0, "first task", True),
        (1, "second task", False),
        (2, "first task", True),
    ]
    assert recorder.stop() == 0


def test_a_finished_episode_survives_kill_minus_nine_at_any_moment_after_finish(
    config: StationConfig, recorder: RecorderProcess
) -> None:
    with SyntheticStation(config):
        for turn, pause_s in enumerate((0.0, 0.03, 0.06, 0.1, 0.2)):
            recorder.start()
            recorder.start_episode(StartEpisode(task=f"turn {turn}"))
            recorder.until(lambda report: report.frames >= 8)
            recorder.ask(FinishEpisode(success=True))
            time.sleep(pause_s)  # the moment of the kill
            recorder.kill()
        report = recorder.start().ask(RecorderQuery())
    assert report.episodes == 5
    episodes = DatasetIndex(config.paths.dataset).list()
    assert [(item.task, item.success, item.salvaged) for item in episodes] == [
        (f"turn {turn}", True, False) for turn in range(5)
    ]
    assert check(config.paths.dataset) == []


def test_an_unfinished_episode_is_salvaged_up_to_the_kill(config: StationConfig, recorder: RecorderProcess) -> None:
    with SyntheticStation(config) as station:
        recorder.start()
        recorder.start_episode(StartEpisode(task="cut short"))
        recorder.until(lambda report: report.frames >= 45)
        at_kill = station.number
        recorder.kill()
        report = recorder.start().ask(RecorderQuery())
    assert (report.episodes, report.salvaged) == (1, 1)
    shown = numbers(opened(config.paths.dataset), every=5)
    [episode] = DatasetIndex(config.paths.dataset).list()
    assert episode.salvaged
    last = shown[0] + episode.frames - 1
    assert at_kill - last < config.recording.fps  # less than a second lost
    assert check(config.paths.dataset) == []


def test_a_discarded_episode_leaves_nothing(config: StationConfig, recorder: RecorderProcess) -> None:
    with SyntheticStation(config):
        recorder.start()
        recorder.start_episode(StartEpisode(task="no good"))
        recorder.until(lambda report: report.frames >= 5)
        recorder.ask(DiscardEpisode(cause="the cube fell"))
        report = recorder.until(lambda report: report.last is not None)
    assert report.last is not None
    assert (report.last.outcome, report.last.reason) == ("discarded", "the cube fell")
    assert journals(config.paths.journal) == []
    assert DatasetIndex(config.paths.dataset).count() == 0


def test_an_episode_ends_by_itself_at_its_length_to_the_row(config: StationConfig, recorder: RecorderProcess) -> None:
    with SyntheticStation(config):
        recorder.start()
        recorder.start_episode(StartEpisode(task="half a second", max_s=0.5))
        last = recorder.until(lambda report: report.last is not None).last
    assert last is not None
    assert (last.outcome, last.frames) == ("committed", 15)


def test_an_episode_is_readable_soon_after_it_was_stopped(config: StationConfig, recorder: RecorderProcess) -> None:
    with SyntheticStation(config):
        recorder.start()
        record(recorder, 30)
        record(recorder, 30)
        last = recorder.ask(RecorderQuery()).last
    assert last is not None
    assert last.stop_to_readable_s is not None
    assert last.stop_to_readable_s < 2  # 0.3 s on a quiet machine; the bench measures it


def test_a_judgement_can_be_given_and_taken_back_later(config: StationConfig, recorder: RecorderProcess) -> None:
    with SyntheticStation(config):
        recorder.start()
        episode = record(recorder, 5, success=None)
        index = DatasetIndex(config.paths.dataset)
        for judgement in (True, False, None):
            recorder.ask(MarkEpisode(episode, judgement))
            assert index.list()[0].success is judgement
        with pytest.raises(BadInput, match="no episode 7"):
            recorder.ask(MarkEpisode(7, True))


def test_a_deleted_episode_is_hidden_until_it_is_restored(config: StationConfig, recorder: RecorderProcess) -> None:
    with SyntheticStation(config):
        recorder.start()
        first, second = record(recorder, 5), record(recorder, 5)
        index = DatasetIndex(config.paths.dataset)
        recorder.ask(HideEpisode(first, deleted=True))
        assert [each.episode for each in index.list()] == [second]
        assert [each.deleted for each in index.list(deleted=True)] == [True, False]
        assert record(recorder, 5) == second + 1, "its number stays taken"
        recorder.ask(HideEpisode(first, deleted=False))
        assert [each.episode for each in index.list()] == [first, second, second + 1]
        with pytest.raises(BadInput, match="no episode 7"):
            recorder.ask(HideEpisode(7, deleted=True))
    assert numbers(opened(config.paths.dataset)), "it is still the dataset that lerobot opens"


def test_sigterm_commits_the_running_episode(config: StationConfig, recorder: RecorderProcess) -> None:
    with SyntheticStation(config):
        recorder.start()
        recorder.start_episode(StartEpisode(task="last one"))
        recorder.until(lambda report: report.frames >= 5)
        assert recorder.stop() == 0
    [episode] = DatasetIndex(config.paths.dataset).list()
    assert not episode.salvaged
    assert DatasetIndex(config.paths.dataset).show(0)["ended"] == "the agent stopped"


def test_a_camera_without_frames_is_named_and_nothing_starts(config: StationConfig, recorder: RecorderProcess) -> None:
    with SyntheticStation(config, silent_cameras={"wrist"}):
        recorder.start()
        with pytest.raises(DeviceFault, match="camera wrist has not delivered a frame yet"):
            recorder.start_episode(StartEpisode(task="move"), within_s=0.5)


def test_a_camera_that_repeats_too_often_rejects_the_episode_with_the_numbers(
    config: StationConfig, recorder: RecorderProcess
) -> None:
    with SyntheticStation(config) as station:
        recorder.start()
        recorder.start_episode(StartEpisode(task="move"))
        recorder.until(lambda report: report.frames >= 5)
        station.silent_cameras.add("wrist")
        recorder.until(lambda report: report.repeats.get("wrist", 0) > 5)
        recorder.ask(FinishEpisode())
        last = recorder.until(lambda report: report.last is not None).last
    assert last is not None
    assert last.outcome == "rejected"
    assert "camera wrist repeated an old frame" in last.reason
    assert DatasetIndex(config.paths.dataset).count() == 0


def test_repeats_below_the_limit_are_counted_and_marked_row_by_row(
    config: StationConfig, recorder: RecorderProcess
) -> None:
    with SyntheticStation(config) as station:
        recorder.start()
        recorder.start_episode(StartEpisode(task="move"))
        recorder.until(lambda report: report.frames >= 10)
        station.silent_cameras.add("wrist")
        recorder.until(lambda report: report.repeats.get("wrist", 0) >= 2)
        station.silent_cameras.clear()
        recorder.until(lambda report: report.frames >= 50)
        recorder.ask(FinishEpisode())
        last = recorder.until(lambda report: report.last is not None).last
    assert last is not None
    assert last.outcome == "committed", last.reason
    facts = DatasetIndex(config.paths.dataset).show(0)
    frames = pq.read_table(config.paths.dataset / frames_path(0)).to_pydict()
    assert facts["cameras"]["wrist"]["repeats"] == sum(frames["wrist/repeat"]) == last.repeats["wrist"] >= 2
    assert len(frames["tick"]) == last.frames
    again = [row for row in range(1, last.frames) if frames["wrist/seq"][row] == frames["wrist/seq"][row - 1]]
    assert all(frames["wrist/repeat"][row] for row in again)
    assert all(age * NS_PER_MS > -NEAR_NS for age in frames["front/age_ms"])


def test_a_short_hole_in_the_ticks_is_marked_and_a_long_one_ends_the_episode_before_it(
    config: StationConfig, recorder: RecorderProcess
) -> None:
    with SyntheticStation(config) as station:
        recorder.start()
        recorder.start_episode(StartEpisode(task="move"))
        recorder.until(lambda report: report.frames >= 40)
        blind_for(station, rows=2)
        recorder.until(lambda report: report.frames >= 60)
        blind_for(station, rows=20)
        last = recorder.until(lambda report: report.last is not None).last
    assert last is not None
    assert last.outcome == "salvaged"
    assert "no usable tick" in last.reason
    facts = DatasetIndex(config.paths.dataset).show(0)
    assert len(facts["gaps"]) == 1
    assert 1 <= facts["gaps"][0]["missing"] <= 4
    assert facts["salvaged"] is True
    assert check(config.paths.dataset) == []


def blind_for(station: SyntheticStation, rows: int) -> None:
    station.blind_arm = True
    until = station.number + rows
    while station.number < until:
        time.sleep(0.002)
    station.blind_arm = False


def test_an_arm_that_falls_silent_ends_the_episode(config: StationConfig, recorder: RecorderProcess) -> None:
    with SyntheticStation(config) as station:
        recorder.start()
        recorder.start_episode(StartEpisode(task="move"))
        recorder.until(lambda report: report.frames >= 20)
        station.arm_silent = True
        last = recorder.until(lambda report: report.last is not None).last
        assert last is not None
        assert last.outcome == "salvaged"
        with pytest.raises(DeviceFault, match="no ticks"):
            recorder.ask(StartEpisode(task="move"))


@pytest.mark.parametrize(("task", "match"), [("", "empty"), ("x" * 31, "31 characters"), ("a\nb", "control")])
def test_a_task_text_that_cannot_be_used_is_refused(
    config: StationConfig, recorder: RecorderProcess, task: str, match: str
) -> None:
    with pytest.raises(BadInput, match=match):
        recorder.start().ask(StartEpisode(task=task))


def test_commands_that_make_no_sense_now_are_refused(config: StationConfig, recorder: RecorderProcess) -> None:
    with SyntheticStation(config):
        recorder.start()
        with pytest.raises(Refused, match="No episode"):
            recorder.ask(FinishEpisode())
        recorder.start_episode(StartEpisode(task="move"))
        with pytest.raises(Refused, match="already"):
            recorder.ask(StartEpisode(task="move"))


def test_a_second_recorder_is_refused_and_names_the_first(
    recorder: RecorderProcess,
) -> None:
    recorder.start()
    assert recorder.another().ended() == Exit.REFUSED
    assert f"in use by process {recorder.pid}" in recorder.printed()
    assert recorder.ask(RecorderQuery()).state is RecorderState.READY


def test_little_free_disk_refuses_an_episode_with_both_numbers(nursery: Nursery, make_config: Any) -> None:
    config = make_config(cameras=TWO_CAMERAS, recording={"min_free_gb": 1_000_000})
    recorder = RecorderProcess(nursery, config)
    try:
        with SyntheticStation(config):
            recorder.start()
            with pytest.raises(Refused, match=r"has \d+\.\d\d GB free; 1e\+06 GB are needed"):
                recorder.ask(StartEpisode(task="move"))
    finally:
        recorder.kill()


def test_a_dataset_of_other_cameras_is_not_mixed_with(
    nursery: Nursery, config: StationConfig, recorder: RecorderProcess
) -> None:
    with SyntheticStation(config):
        recorder.start()
        record(recorder, 5)
        recorder.stop()
        one = config.model_copy(update={"cameras": {"front": config.cameras["front"]}})
        other = RecorderProcess(nursery, one)
        try:
            other.start()
            with pytest.raises(BadInput, match=r"has observation\.images\.wrist, this station has not"):
                other.start_episode(StartEpisode(task="move"), within_s=1)
        finally:
            other.kill()


@pytest.fixture
def small_disk(short_dir: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    folder = short_dir / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_ends_the_episode_and_loses_nothing(
    nursery: Nursery, small_disk: Path, make_config: Any
) -> None:
    cameras = {"front": {"view": "OBS_IMAGE_1", "type": "zmq", "width": 320, "height": 240}}
    config = make_config(cameras=cameras, recording={"min_free_gb": 0, "crf": 5}, state_dir=str(small_disk / "s"))
    recorder = RecorderProcess(nursery, config)
    try:
        with SyntheticStation(config, busy=True):
            recorder.start()
            record(recorder, 5, "before")
            (small_disk / "other people's files").write_bytes(b"x" * 3_000_000)
            recorder.start_episode(StartEpisode(task="too much"))
            last = recorder.until(lambda report: report.last is not None and report.last.task == "too much", 30).last
        assert last is not None
        assert "space" in last.reason or "disk" in last.reason
        assert check(config.paths.dataset) == []
        recorder.stop()
        (small_disk / "other people's files").unlink()
        report = recorder.start().ask(RecorderQuery())
    finally:
        recorder.kill()
    assert report.episodes == 2
    episodes = DatasetIndex(config.paths.dataset).list()
    assert [item.task for item in episodes] == ["before", "too much"]
    assert episodes[1].salvaged
    assert episodes[1].frames >= last.frames - config.recording.fps
    assert check(config.paths.dataset) == []


def test_a_nearly_full_disk_finishes_the_running_episode_and_refuses_the_next(
    nursery: Nursery, small_disk: Path, make_config: Any
) -> None:
    cameras = {"front": {"view": "OBS_IMAGE_1", "type": "zmq", "width": 320, "height": 240}}
    config = make_config(cameras=cameras, recording={"min_free_gb": 0.007}, state_dir=str(small_disk / "s"))
    recorder = RecorderProcess(nursery, config)
    try:
        with SyntheticStation(config):
            recorder.start()
            recorder.start_episode(StartEpisode(task="enough"))
            recorder.until(lambda report: report.frames >= 10)
            others = free_space.free_bytes(config) - 1_200_000  # less than a quarter of the limit stays
            (small_disk / "other people's files").write_bytes(b"x" * others)
            last = recorder.until(lambda report: report.last is not None).last
            assert last is not None
            assert (last.outcome, last.reason) == ("committed", "the disk is nearly full")
            with pytest.raises(Refused, match="GB free"):
                recorder.ask(StartEpisode(task="too much"))
    finally:
        recorder.kill()
    [episode] = DatasetIndex(config.paths.dataset).list()
    assert episode.frames >= 10
    assert not episode.salvaged
    assert check(config.paths.dataset) == []


def test_a_read_only_folder_is_said_in_a_sentence(
    config: StationConfig, recorder: RecorderProcess, request: Any
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a read-only mount needs root")
    config.paths.datasets.mkdir(parents=True)
    with SyntheticStation(config):
        recorder.start()
        mount_read_only(config.paths.datasets, request)
        with pytest.raises(BadInput, match=r"Cannot write to .*episodes: Read-only file system"):
            recorder.start_episode(StartEpisode(task="move"), within_s=2)
        recorder.stop()
    mount_read_only(config.paths.state, request)
    before = len(recorder.printed())
    assert recorder.another().ended() == Exit.BAD_INPUT
    assert "Read-only file system" in recorder.printed()[before:]


def mount_read_only(folder: Path, request: Any) -> None:
    made = subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.decode().strip()}")
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", str(folder)], check=True))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
