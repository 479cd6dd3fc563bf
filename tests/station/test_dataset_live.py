"""A dataset recorded on a running station is what stock lerobot expects, and it tells the truth."""

import json
import threading
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from agent.config import StationConfig
from agent.messages import JOINTS, CameraReport, FrameHeader
from agent.robot.recording.align import NEAR_NS
from agent.transport import Subscriber
from agent.virtual.stamp import Stamp, read_stamp
from tests.station.live import LiveStation

SECONDS = 3.0
PERIOD_MS = 1000 / 30


class Witness:
    """Sees every frame that the cameras' processes publish, as the recorder does, and keeps what is drawn into it."""

    def __init__(self, config: StationConfig) -> None:
        self.stamps: dict[str, dict[int, Stamp]] = {name: {} for name in config.cameras}
        """For each camera: what the frame with this capture time says of itself."""
        self._paths = [config.paths.camera_pub(name) for name in config.cameras]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="witness", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10.0)

    def _watch(self) -> None:
        frames = Subscriber(*self._paths)
        published: msgspec.msgpack.Decoder[FrameHeader | CameraReport] = msgspec.msgpack.Decoder(
            FrameHeader | CameraReport
        )
        while not self._over.is_set():
            if (parts := frames.receive(0.1)) and isinstance(seen := published.decode(parts[0].buffer), FrameHeader):
                image = np.frombuffer(parts[1].buffer, np.uint8).reshape(seen.height, seen.width, 3)
                self.stamps[seen.camera][seen.capture_ns] = read_stamp(image)
        frames.close()


class Recorded(NamedTuple):
    station: LiveStation
    witness: Witness


@pytest.fixture(scope="module")
def recording(shared_station: LiveStation) -> Recorded:
    """Two episodes of the scripted operator, recorded once for this module, and what somebody else saw meanwhile."""
    station = shared_station
    station.calm()
    station.inject(operator="resume")
    station.teleop()
    with Witness(station.config) as witness:
        answer = station.client.call(
            "record.start",
            {"task": "reach the disc", "episodes": 2, "episode_s": SECONDS, "reset_s": 0.5, "wait": True},
        )
    assert [result["outcome"] for result in answer["results"]] == ["committed", "committed"], answer
    station.client.call("hold")
    return Recorded(station, witness)


@pytest.fixture(scope="module")
def recorded(recording: Recorded) -> LiveStation:
    return recording.station


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
def test_frame_i_shows_tick_i(recording: Recorded, monkeypatch: pytest.MonkeyPatch, camera: str) -> None:
    """Every row's picture is the one that was published with the row's capture time, and belongs to the row's tick."""
    opened = dataset(recording.station, monkeypatch)
    frames = frames_table(recording.station.config.paths.dataset)
    key = f"observation.images.{camera}"
    shown = [read_stamp(as_image(opened[index][key])) for index in range(opened.num_frames)]
    stamps = recording.witness.stamps[camera]
    assert_same_frames(shown, frames[f"{camera}/capture_ns"], stamps)
    # The capture time: never before the picture was drawn, and with nothing else to do soon behind it.
    latencies_ms = np.array([capture_ns / 1e6 - stamp.ms for capture_ns, stamp in stamps.items()])
    assert 0 <= latencies_ms.min() < PERIOD_MS / 2
    # The tick: a new frame is at most one period old when the joints are read, or NEAR_NS younger.
    new = ~np.array(frames[f"{camera}/repeat"])
    ages_ms = (np.array(frames["read_ns"]) - np.array(frames[f"{camera}/capture_ns"]))[new] / 1e6
    assert ages_ms.min() >= -NEAR_NS / 1e6
    assert np.median(ages_ms) <= PERIOD_MS


def assert_same_frames(shown: Sequence[Stamp], capture_ns: Sequence[int], stamps: dict[int, Stamp]) -> None:
    """Row by row, the picture in the video is the one that came with this capture time.

    Where the witness saw it: the dataset may be older than the witness, and a busy machine loses it some frames.
    """
    seen = [row for row, at_ns in enumerate(capture_ns) if at_ns in stamps]
    assert len(seen) >= 2 * SECONDS * 30 / 2, f"the witness saw only {len(seen)} frames"
    wrong = [row for row in seen if shown[row] != stamps[capture_ns[row]]]
    assert not wrong, f"rows {wrong} show another frame than the one that was captured then"


def test_a_video_that_is_off_by_one_row_would_be_noticed() -> None:
    stamps = {round(row * PERIOD_MS * 1e6): Stamp(row, round(row * PERIOD_MS)) for row in range(100)}
    times, pictures = list(stamps), list(stamps.values())
    assert_same_frames(pictures, times, stamps)
    for at in (0, 50, 98):  # from there on, as after one frame that was dropped or doubled
        for shifted in (pictures[:at] + pictures[at + 1 :], pictures[: at + 1] + pictures[at:-1]):
            with pytest.raises(AssertionError, match="show another frame"):
                assert_same_frames(shifted, times[: len(shifted)], stamps)
    with pytest.raises(AssertionError, match="witness"):
        assert_same_frames(pictures, times, {})


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
