"""`so-agent policy`: from a checkpoint folder to the policy that tasks run, for people and for programs."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

os.environ["HF_HUB_OFFLINE"] = "1"

from agent.errors import Exit
from agent.inference.importer import Wish, import_checkpoint
from tests.cli.conftest import Cli, Result
from tests.inference.checkpoints import smolvla

ROOT = Path(__file__).resolve().parents[2]

type Policy = Callable[..., Result]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smolvla(tmp_path_factory.mktemp("checkpoints") / "reach", cameras=("camera1", "camera2"), chunk_size=10)


@pytest.fixture
def state(short_dir: Path) -> Path:
    return short_dir / "state"


@pytest.fixture
def policy(cli: Cli, short_dir: Path, state: Path) -> Policy:
    """`policy("list")`, of a station that does not run."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "configs/so101/virtual.yaml").read_text())
    values["state_dir"] = str(state)
    file = short_dir / "station.yaml"
    file.write_text(yaml.safe_dump(values))
    return lambda *words: cli("policy", *words, "-c", file)


@pytest.fixture
def imported(checkpoint: Path, state: Path) -> Path:
    """A policy `reach`, put there without a trial."""
    wish = Wish("reach", description="reaches the disc", tasks=("reach the red disc",))
    return import_checkpoint(checkpoint, state / "policies", wish).folder


def test_a_checkpoint_is_imported_tried_chosen_and_listed(policy: Policy, checkpoint: Path, state: Path) -> None:
    result = policy("import", checkpoint, "--fps", 20, "--task", "reach the red disc", "--description", "a tiny one")
    assert result.code == 0, result.err
    assert "Imported reach: smolvla, 10 actions at 20 Hz" in result.out
    assert "OBS_IMAGE_2 is observation.images.camera2" in result.out
    assert "prediction took" in result.out  # it was loaded and ran
    assert policy("use", "reach").out == "Tasks run reach from now on.\n"
    assert json.loads((state / "policy.json").read_text()) == {"policy": "reach"}
    [line] = [line for line in policy("list").out.splitlines() if "reach" in line]
    assert line.split()[:6] == ["*", "reach", "smolvla", "10", "20", "2"]


def test_what_does_not_run_is_not_imported(policy: Policy, checkpoint: Path, tmp_path: Path, state: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(values | {"type": "unheard_of"}))
    result = policy("import", copy)
    assert result.code == Exit.BAD_INPUT
    assert "lerobot cannot load copy (unheard_of)" in result.err
    assert list((state / "policies").iterdir()) == []


def test_an_import_for_programs(policy: Policy, checkpoint: Path) -> None:
    views = ["--camera", "OBS_IMAGE_1=observation.images.camera2"]
    result = policy("import", checkpoint, "--name", "one", "--no-trial", *views, "--json")
    assert result.json["ok"] is True
    assert result.json["policy"]["cameras"] == {"OBS_IMAGE_1": "observation.images.camera2"}
    assert result.json["chunk_s"] is None
    assert result.err == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--camera", "front"], "OBS_IMAGE_1=observation.images.front"),
        (["--camera", "OBS_IMAGE_1=a", "--camera", "OBS_IMAGE_1=b"], "names a view twice"),
        (["--camera", "OBS_IMAGE_1=observation.images.top"], "observation.images.camera1, observation.images.camera2"),
        (["--fps", "0"], "from 1 to 100"),
        (["--name", "../x"], "cannot be a policy's name"),
        (["--task", ""], "not one line of text"),
        (["--vlm", "/nonexistent"], "/nonexistent lacks config.json"),
        (["--statistics", "/nonexistent"], "/nonexistent is missing"),
    ],
)
def test_wrong_options_are_refused_with_what_to_write(
    policy: Policy, checkpoint: Path, words: list[str], says: str
) -> None:
    result = policy("import", checkpoint, "--no-trial", *words)
    assert result.code == Exit.BAD_INPUT
    assert says in result.err


def test_a_folder_that_is_not_there_is_a_sentence(policy: Policy) -> None:
    result = policy("import", "/nonexistent")
    assert result.code == Exit.BAD_INPUT
    assert "There is no folder /nonexistent" in result.err


def test_a_bundle_is_no_checkpoint_and_the_sentence_says_where_it_goes(policy: Policy) -> None:
    result = policy("import", Path(__file__).parents[2] / "policies" / "demo-reach")
    assert result.code == Exit.BAD_INPUT
    assert "is a policy of so-agent already" in result.err
    assert "`policies/`" in result.err


def test_a_station_without_policies_says_how_to_get_one(policy: Policy) -> None:
    assert "policy import" in policy("list").out
    assert policy("list", "--json").json == []
    for command in ("show", "verify", "use", "remove"):
        result = policy(command, "reach")
        assert result.code == Exit.BAD_INPUT
        assert "There is no policy reach" in result.err
        assert policy(command, "../reach").code == Exit.BAD_INPUT


def test_the_list_and_the_object_for_programs(policy: Policy, imported: Path) -> None:
    [listed] = policy("list", "--json").json
    assert {
        "policy": "reach", "in_use": False, "type": "smolvla", "fps": 30, "chunk_size": 10, "problem": None,
        "tasks": ["reach the red disc"], "description": "reaches the disc",
        "cameras": {f"OBS_IMAGE_{n}": f"observation.images.camera{n}" for n in (1, 2)},
    }.items() <= listed.items()  # fmt: skip
    assert listed["bytes"] > 100_000
    shown = policy("show", "reach", "--json").json
    assert listed.items() <= shown.items()
    assert set(shown["files"]) == {
        path.relative_to(imported).as_posix() for path in imported.glob("*/*") if path.is_file()
    }
    assert "reaches the disc" in policy("show", "reach").out


def test_verify_finds_a_flipped_bit_an_extra_and_a_missing_file(policy: Policy, imported: Path) -> None:
    whole = policy("verify", "reach")
    assert (whole.code, whole.out) == (0, "reach is whole: 10 files verified.\n")
    weights = imported / "policy/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    flipped = policy("verify", "reach", "--json")
    assert flipped.code == Exit.BAD_INPUT
    assert flipped.json["code"] == "bad-input"
    assert "model.safetensors" in flipped.json["message"]
    assert policy("use", "reach").code == Exit.BAD_INPUT
    (imported / "policy/more.txt").touch()
    assert "more.txt" in policy("verify", "reach").err
    (imported / "policy/more.txt").unlink()
    weights.unlink()
    assert "lacks policy/model.safetensors" in policy("verify", "reach").err


def test_the_policy_in_use_is_not_removed(policy: Policy, imported: Path) -> None:
    policy("use", "reach")
    result = policy("remove", "reach")
    assert result.code == Exit.REFUSED
    assert imported.exists()


def test_a_removed_policy_is_gone(policy: Policy, imported: Path) -> None:
    assert policy("remove", "reach").out == "reach is removed.\n"
    assert not imported.exists()


def test_a_bundle_that_cannot_be_read_is_listed_with_the_reason(policy: Policy, imported: Path) -> None:
    (imported / "manifest.sha256").write_text("0" * 64)
    assert "changed after the import" in " ".join(policy("list").out.split())
    assert policy("show", "reach").code == Exit.BAD_INPUT


@pytest.mark.parametrize("command", ["import", "list", "show", "verify", "use", "remove"])
def test_every_command_has_an_example(cli: Cli, command: str) -> None:
    assert f"Example: so-agent policy {command}" in cli("policy", command, "--help").out


def test_a_configuration_is_asked_for(cli: Cli) -> None:
    result = cli("policy", "list")
    assert result.code == Exit.BAD_INPUT
    assert "-c FILE" in result.err
