"""From ticks and frames on the sockets to a dataset that stock lerobot opens."""

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset

from agent.config import StationConfig
from agent.messages import FinishEpisode, RecorderState, StartEpisode
from agent.robot.recording.index import DatasetIndex
from tests.recording.conftest import RecorderProcess
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
    dataset = LeRobotDataset("station/episodes", root=config.paths.dataset)
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
