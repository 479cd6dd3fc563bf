"""Episodes over HTTP: a dataset as the recorder leaves it, and one that lerobot wrote its own way."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agent.api.http.replay import Dataset
from agent.config import StationConfig
from agent.errors import BadInput
from agent.robot.recording.index import DatasetIndex
from tests.http.conftest import Bench
from tests.http.recorder import ROWS, Recorder, record


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Committed by the recorder's own code, once: it takes lerobot."""
    folder = tmp_path_factory.mktemp("made")
    config = StationConfig(
        station="test",
        state_dir=str(folder),  # type: ignore[arg-type]
        robot={  # type: ignore[arg-type]
            "model": "so101",
            "follower": {"port": "/dev/none", "id": "follower"},
            "calibration_dir": str(folder),
        },
    )
    return record(config)


@pytest.fixture
def dataset(made: Path, config: StationConfig) -> Iterator[Path]:
    config.paths.datasets.mkdir(parents=True)
    config.paths.dataset.symlink_to(made)
    yield config.paths.dataset
    for number in range(len(ROWS)):
        DatasetIndex(made).restore(number)
        DatasetIndex(made).mark(number, None)


@pytest.fixture
def recorder(config: StationConfig) -> Iterator[Recorder]:
    with Recorder(config) as recorder:
        yield recorder


async def test_no_dataset_is_no_problem(bench: Bench) -> None:
    assert (await bench.http.get("/api/v1/episodes")).json() == {"episodes": []}
    for path in ("0", "0/replay", "0/videos/front"):
        assert (await bench.http.get(f"/api/v1/episodes/{path}")).status_code == 404, path


async def test_an_episode_is_played_again_with_its_own_rows(bench: Bench, dataset: Path) -> None:
    replay = (await bench.http.get("/api/v1/episodes/1/replay")).json()
    assert (replay["fps"], replay["frames"], len(replay["state"])) == (30.0, ROWS[1], ROWS[1])
    assert replay["state"][3][0] == pytest.approx(103 * 0.125, abs=0.01)
    assert replay["action"][3][0] == pytest.approx(103 * 0.125 + 0.5, abs=0.01)
    assert replay["times_s"][:3] == [0.0, 0.0333, 0.0667]
    assert [clip["camera"] for clip in replay["clips"]] == ["front", "wrist"]
    assert replay["clips"][0]["to_s"] == pytest.approx(ROWS[1] / 30, abs=0.05)
    few = (await bench.http.get("/api/v1/episodes/1/replay", params={"points": 10})).json()
    assert len(few["state"]) == len(few["times_s"]) == 10
    assert few["state"][1] == replay["state"][3]


async def test_a_video_comes_whole_or_in_the_part_that_was_asked_for(bench: Bench, dataset: Path) -> None:
    path = "/api/v1/episodes/2/videos/front"
    whole = await bench.http.get(path)
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    part = await bench.http.get(path, headers={"Range": "bytes=4-11"})
    assert (part.status_code, part.content) == (206, whole.content[4:12])
    assert part.content[:4] == b"ftyp"
    assert (await bench.http.get(path, headers={"Range": f"bytes={10**9}-"})).status_code == 416
    for camera in ("back", "%2e%2e%2fmeta%2finfo.json"):
        assert (await bench.http.get(f"/api/v1/episodes/2/videos/{camera}")).status_code == 404, camera


async def test_judged_deleted_and_brought_back(bench: Bench, dataset: Path, recorder: Recorder) -> None:
    answer = await bench.http.post("/api/v1/episodes/0/mark", json={"success": False})
    assert answer.json()["episode"]["success"] is False
    assert (await bench.http.delete("/api/v1/episodes/0")).json()["episode"]["deleted"] is True
    shown = (await bench.http.get("/api/v1/episodes")).json()["episodes"]
    assert [each["episode"] for each in shown] == [1, 2]
    everything = (await bench.http.get("/api/v1/episodes", params={"deleted": True})).json()["episodes"]
    assert [each["deleted"] for each in everything] == [True, False, False]
    assert (await bench.http.get("/api/v1/episodes/0/replay")).status_code == 200, "it can be looked at before undoing"
    assert (await bench.http.post("/api/v1/episodes/0/restore")).json()["episode"]["deleted"] is False
    events = (await bench.http.get("/api/v1/events")).json()["events"]
    assert [event["text"] for event in events[-2:]] == ["Episode 0 was deleted.", "Episode 0 was restored."]
    for request in (bench.http.delete("/api/v1/episodes/7"), bench.http.post("/api/v1/episodes/7/restore")):
        assert (await request).status_code == 404


async def test_a_recorder_that_does_not_answer_is_named(bench: Bench, dataset: Path) -> None:
    answer = await bench.http.delete("/api/v1/episodes/0")
    assert (answer.status_code, answer.json()["code"]) == (503, "device-fault")
    assert "recorder" in answer.json()["detail"]


@pytest.fixture
def merged(made: Path, tmp_path: Path) -> Path:
    """The same dataset, with all of `meta/episodes` in one file, as lerobot's own tools write it."""
    folder = shutil.copytree(made, tmp_path / "episodes")
    parts = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    table = pa.concat_tables([pq.read_table(part) for part in parts], promote_options="permissive")
    for part in parts:
        part.unlink()
    pq.write_table(table, parts[0])
    return folder


def test_datasets_of_other_tools_are_read_too(merged: Path) -> None:
    replay = Dataset(merged).replay(2, 100)
    assert replay.frames == ROWS[2]
    assert replay.state[0][0] == pytest.approx(200 * 0.125, abs=0.01)
    with pytest.raises(BadInput, match="no episode 3"):
        Dataset(merged).replay(3, 100)


def test_a_dataset_cannot_lead_outside_of_itself(merged: Path) -> None:
    path = merged / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"video_path": "../../../etc/passwd"}))
    with pytest.raises(BadInput, match="outside of itself"):
        Dataset(merged).clip(0, "front")
