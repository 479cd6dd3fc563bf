"""A dataset recorded on a running station is what stock lerobot expects, and it tells the truth."""

import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from agent.messages import JOINTS
from tests.station.live import LiveStation

SECONDS = 3.0


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


def test_frame_i_shows_tick_i(recorded: LiveStation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture carries when it was rendered; it must be the newest that was there at its row's tick."""
    from agent.virtual.cameras import read_stamp

    opened = dataset(recorded, monkeypatch)
    frames = frames_table(recorded.config.paths.dataset)
    for index in range(opened.num_frames):
        row = opened[index]
        read_ms = frames["read_ns"][index] / 1e6
        for camera in ("front", "wrist"):
            image = (row[f"observation.images.{camera}"].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
            _, rendered_ms = read_stamp(image)
            age_ms = read_ms - rendered_ms
            # Rendering and transport take some milliseconds, a frame lives for 33; a shift of one row would
            # show as a further 33.
            assert -1 <= age_ms <= 33.4 + 40, f"row {index} of {camera}: {age_ms:.1f} ms"


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
