"""A policy that is imported is whole, harmless and for this arm; anything else is refused in a sentence."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from agent.errors import BadInput, Refused
from agent.inference.bundle import FORMAT, Bundle, open_bundle, read_manifest, sha256, write_manifest
from agent.inference.contents import pickled, tensors
from agent.inference.importer import STAGING, Wish, import_checkpoint, suggested_name
from agent.inference.library import Library
from tests.inference.checkpoints import MEANS, smolvla

NORMALIZER = "policy_preprocessor_step_5_normalizer_processor.safetensors"
UNNORMALIZER = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"


@pytest.fixture
def checkpoint(smolvla_checkpoint: Path, tmp_path: Path) -> Path:
    """One that a test may spoil."""
    return Path(shutil.copytree(smolvla_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def bundle(smolvla_bundle: Bundle, tmp_path: Path) -> Path:
    """One that a test may spoil."""
    return Path(shutil.copytree(smolvla_bundle.folder, tmp_path / "bundle"))


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    return tmp_path / "policies"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def reseal(folder: Path, **changes: Any) -> None:
    """Make the manifest agree with spoilt files, as somebody would who wants them to be loaded."""
    manifest, _ = read_manifest(folder)
    files = {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and path.parent != folder
    }
    write_manifest(folder, replace_struct(manifest, files=files, **changes))


def replace_struct(manifest: Any, **changes: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(manifest, **changes)


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(BadInput) as caught:
        action()
    assert caught.value.hint, "says what is wrong, but not what to do"
    return str(caught.value)


# --- what an import gives ------------------------------------------------------------------------------


def test_a_bundle_holds_everything_and_opens(smolvla_bundle: Bundle) -> None:
    opened = open_bundle(smolvla_bundle.folder)
    assert opened == smolvla_bundle
    assert len(opened.hash) == 12
    assert opened.manifest.cameras == {
        "OBS_IMAGE_1": "observation.images.front",
        "OBS_IMAGE_2": "observation.images.wrist",
    }
    assert (opened.manifest.type, opened.manifest.chunk_size, opened.manifest.fps) == ("smolvla", 50, 30)
    assert opened.vlm is not None
    assert (opened.vlm / "tokenizer.json").exists()


def test_a_policy_without_language_needs_no_vlm(act_bundle: Bundle) -> None:
    assert open_bundle(act_bundle.folder).vlm is None


def test_sha256sum_can_check_the_manifest(smolvla_bundle: Bundle) -> None:
    subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=smolvla_bundle.folder, check=True, capture_output=True)


def test_no_file_names_a_path_of_the_machine_it_came_from(
    checkpoint: Path, policies: Path, smolvla_checkpoint: Path
) -> None:
    edit(checkpoint / "config.json", lambda it: it.update(pretrained_path="/home/somebody/model", device="cuda"))
    edit(checkpoint / "vlm/tokenizer_config.json", lambda it: it.update(name_or_path="/home/somebody/vlm"))
    made = import_checkpoint(checkpoint, policies, Wish())
    for path in made.folder.rglob("*.json"):
        assert str(smolvla_checkpoint.parent) not in path.read_text()
        assert "somebody" not in path.read_text()
    assert json.loads((made.policy / "config.json").read_text())["device"] == "cpu"


def test_the_original_may_go(checkpoint: Path, policies: Path) -> None:
    made = import_checkpoint(checkpoint, policies, Wish())
    shutil.rmtree(checkpoint)
    open_bundle(made.folder)


def test_the_camera_mapping_can_be_given(checkpoint: Path, policies: Path) -> None:
    swapped = {"OBS_IMAGE_2": "observation.images.front", "OBS_IMAGE_1": "observation.images.wrist"}
    assert import_checkpoint(checkpoint, policies, Wish(cameras=swapped)).manifest.cameras == swapped
    one = {"OBS_IMAGE_1": "observation.images.wrist"}  # lerobot's SmolVLA leaves absent views out
    assert import_checkpoint(checkpoint, policies, Wish("one", cameras=one)).manifest.cameras == one


@pytest.mark.parametrize(
    ("cameras", "words"),
    [
        ({"OBS_IMAGE_1": "observation.images.top"}, "no camera 'observation.images.top'"),
        ({"front": "observation.images.front"}, "not a view"),
        ({f"OBS_IMAGE_{i}": "observation.images.front" for i in (1, 2)}, "same camera"),
    ],
)
def test_a_wrong_camera_mapping_is_refused(
    checkpoint: Path, policies: Path, cameras: dict[str, str], words: str
) -> None:
    assert words in refused(lambda: import_checkpoint(checkpoint, policies, Wish(cameras=cameras)))


def test_act_needs_all_its_cameras(act_bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(act_bundle.folder, tmp_path / "copy"))
    reseal(copy, cameras={})
    assert "needs it" in refused(lambda: open_bundle(copy))


def test_three_cameras_of_the_base_model_become_three_views(tmp_path: Path, policies: Path) -> None:
    made = smolvla(tmp_path / "base", cameras=("camera1", "camera2", "camera3"), chunk_size=10)
    assert import_checkpoint(made, policies, Wish()).manifest.cameras == {
        f"OBS_IMAGE_{number}": f"observation.images.camera{number}" for number in (1, 2, 3)
    }


def test_views_that_only_pad_are_no_cameras(tmp_path: Path, policies: Path) -> None:
    made = smolvla(tmp_path / "padded", cameras=("front",), chunk_size=10, empty_cameras=1)
    assert "empty_camera_0" in (made / "config.json").read_text()
    assert list(import_checkpoint(made, policies, Wish()).manifest.cameras.values()) == ["observation.images.front"]


def test_names_follow_the_folder() -> None:
    assert suggested_name(Path("/a/My Policy.v2")) == "my-policy-v2"
    assert suggested_name(Path("/out/Reach/checkpoints/020000/pretrained_model")) == "reach-020000"
    assert suggested_name(Path("/pretrained_model")) == "pretrained_model"


@pytest.mark.parametrize("name", ["../other", "a/b", "", ".hidden", "UPPER", "x" * 64])
def test_a_name_is_no_path(checkpoint: Path, policies: Path, name: str) -> None:
    if name:
        assert "cannot be a policy's name" in refused(lambda: import_checkpoint(checkpoint, policies, Wish(name)))
    assert "is not the name" in refused(lambda: Library(policies, policies / "x").find(name or ".."))


def test_a_name_that_is_taken_is_refused_and_the_first_stays(checkpoint: Path, policies: Path) -> None:
    first = import_checkpoint(checkpoint, policies, Wish("it"))
    assert "already" in refused(lambda: import_checkpoint(checkpoint, policies, Wish("it", fps=10)))
    assert open_bundle(first.folder) == first


# --- what an import refuses ----------------------------------------------------------------------------


def _bad_trial(_: Bundle) -> None:
    raise BadInput("It does not run.", "Try another.")


def test_a_refused_import_leaves_nothing_behind(checkpoint: Path, policies: Path) -> None:
    refused(lambda: import_checkpoint(checkpoint, policies, Wish(), _bad_trial))
    assert list(policies.iterdir()) == []


def test_what_a_killed_import_left_is_cleared_away(checkpoint: Path, policies: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    left = policies / f"{STAGING}it-{child.pid}"
    (left / "policy").mkdir(parents=True)
    assert Library(policies, policies / "x").names() == []
    import_checkpoint(checkpoint, policies, Wish("it"))
    assert [path.name for path in policies.iterdir()] == ["it"]


class Runs:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def _torch_save(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Runs()))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("pytorch_model.bin", lambda path: path.write_bytes(b"anything")),
        ("optimizer.pt", lambda path: path.write_bytes(b"")),
        ("state.pth", lambda path: path.write_bytes(b"")),
        ("stats.pkl", lambda path: path.write_bytes(b"")),
        ("last.ckpt", lambda path: path.write_bytes(b"")),
        ("README.md", lambda path: path.write_bytes(pickle.dumps(Runs(), protocol=2))),
        ("notes.txt", lambda path: path.write_bytes(pickle.dumps(Runs(), protocol=4))),
        ("vlm/added_tokens.json", _torch_save),
        (".cache/hidden", lambda path: path.write_bytes(pickle.dumps(Runs(), protocol=5))),
        ("model.safetensors", _torch_save),
        ("model.safetensors", lambda path: path.write_bytes(pickle.dumps(Runs()))),
    ],
)
def test_a_pickle_anywhere_in_the_folder_is_refused(
    checkpoint: Path, policies: Path, name: str, make: Callable[[Path], object]
) -> None:
    (checkpoint / name).parent.mkdir(exist_ok=True)
    make(checkpoint / name)
    words = refused(lambda: import_checkpoint(checkpoint, policies, Wish()))
    assert str(checkpoint / name) in words
    assert "pickle" in words


def test_a_safetensors_header_of_any_length_is_not_taken_for_a_pickle(tmp_path: Path) -> None:
    """A header of 0x280 bytes begins like a pickle of protocol 2."""
    for padding in range(0, 1400, 8):
        path = tmp_path / "it.safetensors"
        save_file({"a": np.zeros(1, np.float32)}, path, {"pad": "x" * padding})
        assert not pickled(path)
        assert list(tensors(path)) == ["a"]


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"\xff" * 8 + data])
def test_weights_that_are_cut_or_longer_are_refused(
    checkpoint: Path, policies: Path, spoil: Callable[[bytes], bytes]
) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    assert "not a whole safetensors file" in refused(lambda: import_checkpoint(checkpoint, policies, Wish()))


def test_links_are_refused(checkpoint: Path, policies: Path) -> None:
    (checkpoint / "vlm/vocab.json").symlink_to("/etc/passwd")
    assert "symbolic link" in refused(lambda: import_checkpoint(checkpoint, policies, Wish()))


def test_the_folder_itself_may_be_reached_through_a_link(checkpoint: Path, policies: Path, tmp_path: Path) -> None:
    """lerobot's checkpoints/last is one."""
    (tmp_path / "last").symlink_to(checkpoint)
    import_checkpoint(tmp_path / "last", policies, Wish("it"))


def test_absurd_sizes_are_refused(checkpoint: Path, policies: Path) -> None:
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.truncate(17 * 1024**3)  # sparse
    assert "at most" in refused(lambda: import_checkpoint(checkpoint, policies, Wish()))
    for number in range(300):
        (checkpoint / f"{number}.txt").touch()
    assert "more than 200 files" in refused(lambda: import_checkpoint(checkpoint, policies, Wish()))


def test_json_that_is_nested_to_the_bottom_is_refused(checkpoint: Path, policies: Path) -> None:
    (checkpoint / "config.json").write_text("[" * 200_000)
    assert "not valid JSON" in refused(lambda: import_checkpoint(checkpoint, policies, Wish()))


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no model.safetensors"),
        ("policy_preprocessor.json", "migrate_policy_normalization"),
        (UNNORMALIZER, "policy_postprocessor_step_0"),
        ("vlm/tokenizer.json", "lacks tokenizer.json"),
        ("vlm/config.json", "lacks config.json"),
        ("vlm/processor_config.json", "processor_config.json or preprocessor_config.json"),
    ],
)
def test_a_missing_file_is_named(checkpoint: Path, policies: Path, missing: str, words: str) -> None:
    (checkpoint / missing).unlink()
    edit_vlm = checkpoint / "config.json"
    if edit_vlm.exists():
        edit(edit_vlm, lambda it: it.update(vlm_model_name="HuggingFaceTB/SmolVLM2-500M-Video-Instruct"))
    assert words in refused(lambda: import_checkpoint(checkpoint, policies, Wish()))


def test_without_a_tokenizer_it_says_how_to_get_one(checkpoint: Path, policies: Path) -> None:
    shutil.rmtree(checkpoint / "vlm")
    edit(checkpoint / "config.json", lambda it: it.update(vlm_model_name="HuggingFaceTB/SmolVLM2-500M-Video-Instruct"))
    words = refused(lambda: import_checkpoint(checkpoint, policies, Wish()))
    assert "--vlm" in words
    assert "hf download HuggingFaceTB/SmolVLM2-500M-Video-Instruct" in words


def test_the_vlm_is_taken_from_the_option_or_from_where_it_was_trained(
    checkpoint: Path, policies: Path, tmp_path: Path
) -> None:
    shutil.move(checkpoint / "vlm", tmp_path / "elsewhere")
    edit(checkpoint / "config.json", lambda it: it.update(vlm_model_name="some/model"))
    assert import_checkpoint(checkpoint, policies, Wish("a", vlm=tmp_path / "elsewhere")).vlm
    edit(checkpoint / "config.json", lambda it: it.update(vlm_model_name=str(tmp_path / "elsewhere")))
    assert import_checkpoint(checkpoint, policies, Wish("b")).vlm


def test_weights_and_remote_code_of_the_vlm_stay_out(checkpoint: Path, policies: Path) -> None:
    (checkpoint / "vlm/modeling_evil.py").write_text("import os")
    shutil.copy(checkpoint / "model.safetensors", checkpoint / "vlm/model.safetensors")
    edit(checkpoint / "vlm/config.json", lambda it: it.update(auto_map={"AutoConfig": "modeling_evil.Config"}))
    made = import_checkpoint(checkpoint, policies, Wish())
    assert made.vlm
    assert {path.name for path in made.vlm.iterdir()} == {
        "config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json",
    }  # fmt: skip
    assert "auto_map" not in (made.vlm / "config.json").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda it: it["output_features"]["action"].update(shape=[7]), "7 dimensions: it was made for another robot"),
        (lambda it: it["input_features"]["observation.state"].update(shape=[14]), "state of 14 dimensions"),
        (
            lambda it: it["input_features"].update({"observation.environment_state": {"type": "ENV", "shape": [3]}}),
            "needs observation.environment_state",
        ),
        (
            lambda it: [it["input_features"].pop(f"observation.images.{name}") for name in ("front", "wrist")],
            "looks at no camera",
        ),
        (lambda it: it.update(n_obs_steps=2), "2 observations at once"),
        (lambda it: it.update(use_peft=True), "adapter"),
        (lambda it: it.update(adapt_to_pi_aloha=True), "Aloha"),
        (lambda it: it.update(chunk_size=0), "chunk_size is 0"),
        (lambda it: it.update(type="../evil"), "no type of policy"),
        (lambda it: it.update(input_features=None), "input_features cannot be read"),
    ],
)
def test_a_policy_for_something_else_is_refused(
    checkpoint: Path, policies: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit(checkpoint / "config.json", change)
    assert words in refused(lambda: import_checkpoint(checkpoint, policies, Wish()))


@pytest.mark.parametrize(
    "step",
    [
        {"class": "subprocess.Popen", "config": {"args": ["touch", "pwned"]}},
        {"class": "os.system", "config": {"command": "touch pwned"}},
        {"registry_name": "action_tokenizer_processor", "config": {"trust_remote_code": True}},
        {"registry_name": "device_processor", "config": [], "class": "os.system"},
    ],
)
def test_a_processor_that_could_run_code_is_refused(checkpoint: Path, policies: Path, step: dict[str, Any]) -> None:
    """lerobot imports whatever class a step names, and calls it with whatever the step says."""
    edit(checkpoint / "policy_preprocessor.json", lambda it: it["steps"].insert(0, step))
    assert "not known to be harmless" in refused(lambda: import_checkpoint(checkpoint, policies, Wish()))


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "sub/it.safetensors", "it.pt", 7])
def test_a_state_file_is_no_path(checkpoint: Path, policies: Path, name: Any) -> None:
    edit(checkpoint / "policy_postprocessor.json", lambda it: it["steps"][0].update(state_file=name))
    assert "keeps its state in" in refused(lambda: import_checkpoint(checkpoint, policies, Wish()))


def _as_published(checkpoint: Path) -> None:
    """`lerobot/smolvla_base`: action statistics of its training sets, under their names; none of the state."""
    for name in (NORMALIZER, UNNORMALIZER):
        own = load_file(checkpoint / name)
        prefixed = {
            f"{arm}.buffer.{key}": value
            for arm in ("so100", "so100-red")
            for key, value in own.items()
            if key.startswith("action.")
        }
        save_file(prefixed, checkpoint / name)


def test_statistics_that_lerobot_would_silently_skip_are_an_error(checkpoint: Path, policies: Path) -> None:
    _as_published(checkpoint)
    words = refused(lambda: import_checkpoint(checkpoint, policies, Wish()))
    assert "no statistics (mean) of observation.state" in words
    assert "--statistics" in words


def test_the_names_of_other_datasets_statistics_are_told(checkpoint: Path, policies: Path) -> None:
    own = load_file(checkpoint / UNNORMALIZER)
    save_file({f"so100.buffer.{key}": value for key, value in own.items()}, checkpoint / UNNORMALIZER)
    assert "only of the datasets so100" in refused(lambda: import_checkpoint(checkpoint, policies, Wish()))


def test_a_base_model_takes_the_statistics_of_a_dataset(checkpoint: Path, policies: Path, tmp_path: Path) -> None:
    _as_published(checkpoint)
    joints = {"mean": list(MEANS), "std": [10.0] * 6, "min": [-90.0] * 6, "max": [90.0] * 6, "count": [100]}
    (tmp_path / "dataset/meta").mkdir(parents=True)
    stats = tmp_path / "dataset/meta/stats.json"
    stats.write_text(json.dumps({"action": joints, "observation.state": joints}))
    made = import_checkpoint(checkpoint, policies, Wish(statistics=tmp_path / "dataset"))
    assert load_file(made.policy / UNNORMALIZER)["action.std"].tolist() == [10.0] * 6
    assert load_file(made.policy / NORMALIZER)["observation.state.mean"].tolist() == list(MEANS)
    edit(stats, lambda it: it["action"].update(mean=[0.0] * 7))
    again = Wish("again", statistics=stats)
    assert "not six finite numbers" in refused(lambda: import_checkpoint(checkpoint, policies, again))
    edit(stats, lambda it: it.pop("action"))
    assert "no statistics of action" in refused(lambda: import_checkpoint(checkpoint, policies, again))


def test_statistics_of_another_robot_are_refused(checkpoint: Path, policies: Path) -> None:
    own = load_file(checkpoint / UNNORMALIZER)
    save_file(own | {"action.mean": np.zeros(7, np.float32)}, checkpoint / UNNORMALIZER)
    assert "have 7 dimensions" in refused(lambda: import_checkpoint(checkpoint, policies, Wish()))


def test_a_full_disk_is_a_sentence(checkpoint: Path, policies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    assert "are free" in refused(lambda: import_checkpoint(checkpoint, policies, Wish()))


def test_a_state_folder_that_cannot_be_made_is_a_sentence(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Cannot write to" in refused(lambda: import_checkpoint(checkpoint, tmp_path / "file/policies", Wish()))


# --- what opening refuses ------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_found(bundle: Path) -> None:
    for path in sorted(bundle.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        for place in {0, len(data) // 3, len(data) - 1}:
            path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            with pytest.raises(BadInput):
                open_bundle(bundle)
        path.write_bytes(data)
    open_bundle(bundle)


def test_a_missing_and_an_extra_file_are_named(bundle: Path) -> None:
    (bundle / "policy/extra.json").write_text("{}")
    assert "holds policy/extra.json" in refused(lambda: open_bundle(bundle))
    (bundle / "policy/extra.json").unlink()
    (bundle / "vlm/tokenizer.json").unlink()
    assert "lacks vlm/tokenizer.json" in refused(lambda: open_bundle(bundle))


def test_a_link_in_a_bundle_is_refused(bundle: Path) -> None:
    shutil.move(bundle / "vlm/tokenizer.json", bundle.parent / "tokenizer.json")
    (bundle / "vlm/tokenizer.json").symlink_to(bundle.parent / "tokenizer.json")
    assert "symbolic link" in refused(lambda: open_bundle(bundle))


def test_another_format_is_refused_with_what_to_do(bundle: Path) -> None:
    reseal(bundle, format=FORMAT + 1)
    assert "Update the agent" in refused(lambda: open_bundle(bundle))


def test_a_folder_that_is_no_bundle_is_refused(checkpoint: Path) -> None:
    assert "is not a policy bundle" in refused(lambda: open_bundle(checkpoint))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda it: (it / "policy/evil.json").write_bytes(pickle.dumps(Runs())), "is a pickle"),
        (lambda it: _torch_save(it / "vlm/vocab.json"), "zip archive"),
        (lambda it: (it / "policy/run.py").write_text("import os"), "no kind that belongs"),
        (lambda it: (it / "vlm/tokenizer.json").unlink(), "has no tokenizer.json"),
        (
            lambda it: edit(it / "policy/config.json", lambda v: v["output_features"]["action"].update(shape=[7])),
            "another robot",
        ),
        (
            lambda it: edit(it / "policy/config.json", lambda v: v.update(chunk_size=49)),
            "the policy is smolvla with 49",
        ),
        (lambda it: (it / "policy/.hidden.json").write_text("{}"), "no place in a bundle"),
    ],
)
def test_a_bundle_that_agrees_with_its_manifest_is_still_judged(
    bundle: Path, spoil: Callable[[Path], object], words: str
) -> None:
    """Somebody who can write files can also write hashes."""
    spoil(bundle)
    reseal(bundle)
    assert words in refused(lambda: open_bundle(bundle))


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd", "policy/../../x.json", "other/x.json", "policy/"])
def test_a_manifest_cannot_name_files_outside(bundle: Path, name: str) -> None:
    manifest, _ = read_manifest(bundle)
    write_manifest(bundle, replace_struct(manifest, files=manifest.files | {name: "0" * 64}))
    assert "no place in a bundle" in refused(lambda: open_bundle(bundle))


# --- the library ---------------------------------------------------------------------------------------


@pytest.fixture
def library(smolvla_bundle: Bundle, policies: Path, tmp_path: Path) -> Library:
    shutil.copytree(smolvla_bundle.folder, policies / "tiny-smolvla")
    return Library(policies, tmp_path / "policy.json")


def test_a_policy_in_use_is_found_without_its_name_and_cannot_be_removed(library: Library) -> None:
    assert "No policy is in use" in refused(library.find)
    bundle = library.use("tiny-smolvla")
    assert library.open() == bundle
    assert [entry.in_use for entry in library.list()] == [True]
    with pytest.raises(Refused):
        library.remove("tiny-smolvla")


def test_a_removed_policy_is_gone(library: Library, policies: Path) -> None:
    library.remove("tiny-smolvla")
    assert library.list() == []
    assert list(policies.iterdir()) == []
    assert "There is no policy tiny-smolvla" in refused(lambda: library.open("tiny-smolvla"))


def test_a_broken_policy_is_not_used_but_listed_with_its_problem(library: Library, policies: Path) -> None:
    (policies / "tiny-smolvla/policy/model.safetensors").write_bytes(b"")
    refused(lambda: library.use("tiny-smolvla"))
    assert library.in_use() is None
    (policies / "tiny-smolvla/manifest.json").write_text("{}")
    assert "changed after the import" in library.list()[0].problem
    library.remove("tiny-smolvla")


def test_a_bundle_under_another_name_is_refused(library: Library, policies: Path) -> None:
    (policies / "tiny-smolvla").rename(policies / "other")
    assert "holds the policy tiny-smolvla" in refused(lambda: library.open("other"))


def test_a_choice_that_cannot_be_read_is_a_sentence(library: Library, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text("{")
    assert "policy use" in refused(library.in_use)
    library.use("tiny-smolvla")
    assert library.in_use() == "tiny-smolvla"


def test_bundles_are_opened_without_torch_or_lerobot(smolvla_bundle: Bundle) -> None:
    code = (
        "import sys; from pathlib import Path; from agent.inference.library import Library;"
        f"Library(Path({str(smolvla_bundle.folder.parent)!r}), Path('/nonexistent')).open('tiny-smolvla');"
        "print(*{'torch', 'lerobot', 'transformers', 'safetensors'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == []
