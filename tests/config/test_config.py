"""The configuration: what it accepts, and the sentences for what it does not."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.config import load
from agent.errors import BadInput
from agent.task_text import TASK_MAX_CHARS, check_task

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "configs").glob("*/*.yaml"))

type Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[Change], str]:
    """The message for the shipped configuration after a change that must not pass."""

    def refuse(change: Change) -> str:
        values = yaml.safe_load((ROOT / "configs/so101/station.yaml").read_text())
        change(values)
        file = tmp_path / "station.yaml"
        file.write_text(yaml.safe_dump(values))
        with pytest.raises(BadInput) as caught:
            load(file)
        assert str(file) in caught.value.message or "socket" in caught.value.message
        assert caught.value.hint
        return caught.value.message

    return refuse


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_shipped_configuration_loads(file: Path) -> None:
    config = load(file)
    assert config.robot.model == file.parent.name
    assert list(config.views()) == ["OBS_IMAGE_1", "OBS_IMAGE_2"]


@pytest.mark.parametrize("model", ["so100", "so101"])
def test_virtual_and_real_stations_differ_only_in_ports_cameras_and_state_folder(model: str) -> None:
    real, virtual = (
        yaml.safe_load((ROOT / f"configs/{model}/{kind}.yaml").read_text()) for kind in ("station", "virtual")
    )
    for values in (real, virtual):
        for arm in ("follower", "leader"):
            values["robot"][arm].pop("port")
        for camera in values["cameras"].values():
            camera.pop("type")
            camera.pop("options")
        values.pop("station")
        values.pop("state_dir")
    real.pop("http")  # one page a machine: virtual stations come in numbers, and would want the same port
    assert real == virtual


def test_the_real_configuration_explains_every_field() -> None:
    text = (ROOT / "configs/so101/station.yaml").read_text()
    document = (ROOT / "docs/configuration.md").read_text()
    for path in _fields(load(ROOT / "configs/so101/station.yaml").model_dump()):
        leaf = path.rsplit(".", 1)[-1]
        assert f"`{leaf}`" in document, f"docs/configuration.md does not explain {path}"
    assert text.count("CHANGE") >= 4


def _fields(values: dict[str, Any], prefix: str = "") -> list[str]:
    paths: list[str] = []
    for key, value in values.items():
        if key == "options":
            paths.append(f"{prefix}{key}")
        elif isinstance(value, dict):
            # the names of cameras are the user's own
            inner = "" if prefix == "cameras." else f"{prefix}{key}."
            paths += _fields(value, inner)
        else:
            paths.append(f"{prefix}{key}")
    return paths


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(colour="red"), ["colour", "unknown key", "'red'"]),
        (lambda v: v["safety"].update(max_sped=1), ["safety.max_sped", "unknown key"]),
        (lambda v: v.pop("station"), ["station", "missing"]),
        (lambda v: v["robot"].pop("follower"), ["robot.follower", "missing"]),
        (lambda v: v["robot"].update(model="so102"), ["robot.model", "'so102'", "so100", "so101"]),
        (lambda v: v["robot"].update(control_hz="fast"), ["robot.control_hz", "'fast'"]),
        (lambda v: v["robot"].update(control_hz=1000), ["robot.control_hz", "found 1000", "200"]),
        (lambda v: v["robot"].update(control_hz=45), ["robot.control_hz (45)", "multiple of recording.fps (30)"]),
        (lambda v: v["robot"]["leader"].update(port=v["robot"]["follower"]["port"]), ["same port"]),
        (lambda v: v["cameras"]["front"].update(fps=0), ["cameras.front.fps", "found 0"]),
        (lambda v: v["cameras"]["front"].update(view="OBS_IMAGE_2"), ["OBS_IMAGE_1, OBS_IMAGE_2", "each once"]),
        (lambda v: v["cameras"]["front"].update(view="TOP"), ["cameras.front.view", "'TOP'"]),
        (lambda v: v["cameras"].update({"../x": v["cameras"].pop("wrist")}), ["cameras.../x"]),
        (lambda v: v["recording"].update(dataset="/etc"), ["recording.dataset", "'/etc'"]),
        (lambda v: v["recording"].update(vcodec="mjpeg"), ["recording.vcodec", "'mjpeg'", "h264"]),
        (lambda v: v["safety"].update(estop="panic"), ["safety.estop", "'panic'", "limp"]),
        (lambda v: v["safety"]["park"].update(gripper=400), ["safety.park.gripper", "found 400"]),
        (lambda v: v.update(run_dir="/tmp/" + "long/" * 30), ["bytes long"]),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_what_was_found(
    refused: Callable[[Change], str], change: Change, words: list[str]
) -> None:
    message = refused(change)
    for word in words:
        assert word in message


def test_all_errors_are_reported_at_once(refused: Callable[[Change], str]) -> None:
    def change(values: dict[str, Any]) -> None:
        values["robot"]["control_hz"] = -1
        values["recording"]["crf"] = 99
        values["nonsense"] = True

    message = refused(change)
    assert "3 errors" in message
    assert all(words in message for words in ("robot.control_hz", "recording.crf", "nonsense"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("robot: {model: so101", "line"),
        ("- a list\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("station: [a\n", "not valid YAML"),
        ("\tstation: a\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "station.yaml"
    file.write_text(text)
    with pytest.raises(BadInput, match=re.escape(words)):
        load(file)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Cannot read"):
        load(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="Cannot read"):
        load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="Cannot read"):
        load(tmp_path / "binary.yaml")


def test_the_environment_overrides_the_file_and_moves_everything(
    monkeypatch: pytest.MonkeyPatch, short_dir: Path
) -> None:
    monkeypatch.setenv("SO_AGENT__STATE_DIR", str(short_dir))
    monkeypatch.setenv("SO_AGENT__RECORDING__DATASET", "kitchen")
    config = load(ROOT / "configs/so101/virtual.yaml")
    assert config.state_dir == short_dir
    assert config.paths.dataset == short_dir / "datasets" / "kitchen"
    assert config.robot.follower.port == short_dir / "dev" / "follower"
    assert config.recording.fps == 30  # beside an overridden field the file still counts


def test_a_typing_mistake_in_the_environment_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SO_AGENT__ROBOT__CONTROL_HERTZ", "30")
    with pytest.raises(BadInput, match=re.escape("robot.control_hertz")):
        load(ROOT / "configs/so101/virtual.yaml")


def test_a_configuration_cannot_be_changed_and_its_hash_tells_two_apart(make_config: Any) -> None:
    config = make_config()
    with pytest.raises(ValueError, match="frozen"):
        config.station = "other"
    assert config.hash == make_config().hash
    assert config.hash != make_config(station="other").hash


@pytest.mark.parametrize("text", ["reach", " pick up the red cube ", "x" * TASK_MAX_CHARS, "würfel greifen"])
def test_a_usable_task_text_is_taken_without_the_space_around_it(text: str) -> None:
    assert check_task(text) == text.strip()


@pytest.mark.parametrize("text", ["", " \t", "x" * (TASK_MAX_CHARS + 1), "a\nb", "bell\a"])
def test_an_unusable_task_text_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        check_task(text)
