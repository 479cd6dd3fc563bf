"""A dataset recorded on a running station is what stock lerobot expects, and it tells the truth."""

import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from agent.messages import JOINTS
from agent.robot.recording.align import NEAR_NS
from tests.station.live import LiveStation

SECONDS = 3.0
PERIOD_MS = 1000 / 30


@pytest.fixture(scope="module")
def recorded(shared_station: LiveStation) -> LiveStation:
    """Two episodes of the scripted operator, recorded once for this module."""
    station = shared_station
    station.calm()
    station.inject(operator="resume")
    station.teleop()
    answer = station.client.call(
        "record.start",
        {"task": "reach the disc", "episodes": 2, "episode_s": SECONDS, "reset_s": 0.5, "wait": True},
    )
    assert [result["outcome"] for result in answer["results"]] == ["committed", "committed"], answer
    station.client.call("hold")
    return station


def dataset(station: LiveStation, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("local/episodes", root=station.config.paths.dataset)


def test_stock_lerobot_opens_it_offline_with_a_frame_for_every_row(
    recorded: LiveStation, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = dataset(recorded, monkeypatch)
    episodes = recorded.client.call("episodes.list")["episodes"]
    assert opened.num_episodes == len(episodes)
    assert opened.num_frames == sum(episode["frames"] for episode in episodes)
    last = opened[opened.num_frames - 1]
    assert tuple(last["observation.images.front"].shape) == (3, 480, 640)
    assert abs(episodes[-1]["frames"] - SECONDS * 30) <= 1


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_frame_i_shows_tick_i(recorded: LiveStation, monkeypatch: pytest.MonkeyPatch, camera: str) -> None:
    """Every picture carries when it was drawn: it is the one that its row's capture time and tick belong to."""
    from agent.virtual.cameras import read_stamp

    opened = dataset(recorded, monkeypatch)
    frames = frames_table(recorded.config.paths.dataset)
    key = f"observation.images.{camera}"
    drawn_ms = np.array([read_stamp(as_image(opened[index][key]))[1] for index in range(opened.num_frames)])
    captured_ms = np.array(frames[f"{camera}/capture_ns"]) / 1e6
    new = ~np.array(frames[f"{camera}/repeat"])
    assert_same_frames(drawn_ms, captured_ms, new)
    # The tick: a new frame is at most one period old when the joints are read, or NEAR_NS younger.
    ages_ms = np.array(frames["read_ns"])[new] / 1e6 - captured_ms[new]
    assert ages_ms.min() >= -NEAR_NS / 1e6
    assert np.median(ages_ms) <= PERIOD_MS


def assert_same_frames(drawn_ms: Any, captured_ms: Any, new: Any) -> None:
    """Picture and capture time of every row belong together, and not to the row before or after."""
    latency_ms = np.median(captured_ms - drawn_ms)
    assert 0 <= latency_ms < 25, "drawing, JPEG and transport take less than a frame's time"
    for index in np.flatnonzero(new):
        closest = np.abs(captured_ms - latency_ms - drawn_ms[index]).argmin()
        assert captured_ms[closest] == captured_ms[index], f"row {index} shows the frame of row {closest}"


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_video_shifted_by_one_row_would_be_noticed(shift: int) -> None:
    captured_ms = np.arange(60) * PERIOD_MS
    drawn_ms = captured_ms - 6.0
    everything = np.ones(60, dtype=bool)
    assert_same_frames(drawn_ms, captured_ms, everything)
    with pytest.raises(AssertionError):
        assert_same_frames(np.roll(drawn_ms, shift)[2:-2], captured_ms[2:-2], everything[2:-2])
    with pytest.raises(AssertionError):  # from the middle on, as after one dropped frame
        assert_same_frames(np.r_[drawn_ms[:30], drawn_ms[31:], drawn_ms[-1:]], captured_ms, everything)


def as_image(tensor: Any) -> Any:
    return (tensor.permute(1, 2, 0).numpy() * 255).astype(np.uint8)


def frames_table(root: Path) -> dict[str, list[Any]]:
    tables = [pq.read_table(path).to_pydict() for path in sorted((root / "meta" / "so_agent").glob("*.parquet"))]
    return {key: [value for table in tables for value in table[key]] for key in tables[0]}


def test_action_equals_the_goals_on_the_wire(recorded: LiveStation, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = dataset(recorded, monkeypatch)
    calibration = json.loads(recorded.config.paths.follower_calibration.read_text())
    wire = recorded.wire()
    times = [entry["ns"] for entry in wire]
    frames = frames_table(recorded.config.paths.dataset)
    actions = np.array(opened.hf_dataset["action"])
    for index, action in enumerate(actions):
        # The goals that arrived first after this row's joints were read.
        start = bisect_right(times, frames["read_ns"][index])
        goals = {entry["id"]: entry["goal"] for entry in reversed(wire[start : start + len(JOINTS)])}
        for number, joint in enumerate(JOINTS):
            expected = to_units(joint, goals[calibration[joint]["id"]], calibration[joint])
            assert action[number] == pytest.approx(expected, abs=0.1), f"row {index}, {joint}"


def to_units(joint: str, raw: int, calibration: dict[str, int]) -> float:
    """lerobot's normalisation: degrees about the middle of the calibrated range, gripper in percent of it."""
    low, high = calibration["range_min"], calibration["range_max"]
    if joint == "gripper":
        return (raw - low) / (high - low) * 100
    return (raw - (low + high) / 2) * 360 / 4095


def test_a_batch_of_it_trains(recorded: LiveStation, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    opened = dataset(recorded, monkeypatch)
    torch.manual_seed(0)
    batch = next(iter(torch.utils.data.DataLoader(opened, batch_size=8, shuffle=True)))
    model = torch.nn.Linear(6, 6)
    loss = torch.nn.functional.mse_loss(model(batch["observation.state"]), batch["action"])
    loss.backward()
    assert torch.isfinite(loss)
    assert batch["observation.images.front"].shape == (8, 3, 480, 640)
