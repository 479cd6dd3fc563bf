"""A bundle becomes exactly the policy that was trained, with no network and no pickle on the way."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from agent.errors import BadInput, BadPrediction
from agent.inference.bundle import Bundle, open_bundle
from agent.inference.engine import Observation
from agent.inference.importer import Wish, import_checkpoint
from agent.inference.loading import Loaded, load_policy
from agent.inference.trial import try_out
from tests.inference.checkpoints import MEANS, SIZE, SPREADS

JOINTS = (3.0, -40.0, 55.0, 21.0, -8.0, 12.0)
TASK = "reach the red disc"


def observation(bundle: Bundle, size: tuple[int, int] = SIZE, task: str = TASK) -> Observation:
    rng = np.random.default_rng(0)
    names = bundle.manifest.cameras.values()
    return Observation(JOINTS, {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name in names}, task)


@pytest.fixture(scope="module")
def loaded(smolvla_bundle: Bundle) -> Loaded:
    return load_policy(smolvla_bundle)


@pytest.fixture(scope="module")
def loaded_act(act_bundle: Bundle) -> Loaded:
    return load_policy(act_bundle)


@pytest.mark.parametrize("name", ["smolvla", "act"])
def test_it_predicts_what_lerobot_predicts_from_the_original_checkpoint(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Through lerobot's ordinary way: from_pretrained, the saved processors, one observation."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from lerobot.policies.utils import prepare_observation_for_inference

    checkpoint: Path = request.getfixturevalue(f"{name}_checkpoint")
    it: Loaded = load_policy(request.getfixturevalue(f"{name}_bundle"))
    seen = observation(it.bundle)
    config = PreTrainedConfig.from_pretrained(checkpoint)
    original = get_policy_class(name).from_pretrained(checkpoint, config=config)
    before, after = make_pre_post_processors(config, str(checkpoint))
    values = {"observation.state": np.asarray(JOINTS, np.float32)} | dict(seen.images)
    batch = before(prepare_observation_for_inference(values, torch.device("cpu"), TASK, "so101_follower"))
    noise = {"noise": torch.randn(1, 50, 8, generator=torch.Generator().manual_seed(1))} if name == "smolvla" else {}
    expected = after(original.predict_action_chunk(batch, **noise))[0].numpy()
    assert np.array_equal(it.finish(it.predict(it.prepare(seen), **noise)), expected)


def test_the_whole_chunk_comes_in_degrees_at_once(loaded: Loaded) -> None:
    normalised = torch.arange(50 * 6).reshape(1, 50, 6) / 100
    actions = loaded.finish(normalised)
    assert actions.shape == (50, 6)
    assert actions.dtype == np.float32
    assert np.allclose(actions, normalised[0].numpy() * SPREADS + MEANS, atol=1e-4)
    assert np.array_equal(loaded.finish(normalised[0]), actions)


def test_the_joints_are_normalised_and_the_task_ends_its_line(loaded: Loaded) -> None:
    batch = loaded.prepare(observation(loaded.bundle))
    expected = (np.asarray(JOINTS) - MEANS) / SPREADS
    assert np.allclose(batch["observation.state"].numpy(), expected[None], atol=1e-5)
    assert batch["task"] == [f"{TASK}\n"]


def test_a_task_is_tokenised_once(loaded: Loaded) -> None:
    first = loaded.prepare(observation(loaded.bundle))["observation.language.tokens"]
    again = loaded.prepare(observation(loaded.bundle))["observation.language.tokens"]
    other = loaded.prepare(observation(loaded.bundle, task="reach the blue disc"))["observation.language.tokens"]
    assert again.data_ptr() == first.data_ptr()
    assert not torch.equal(other, first)
    for number in range(40):  # a station that runs for months does not remember every text it was ever told
        loaded.prepare(observation(loaded.bundle, task=f"task {number}"))
    anew = loaded.prepare(observation(loaded.bundle))["observation.language.tokens"]
    assert torch.equal(anew, first)
    assert anew.data_ptr() != first.data_ptr()


def test_frames_that_cannot_be_written_to_are_taken_without_a_warning(loaded: Loaded) -> None:
    seen = observation(loaded.bundle)
    for image in seen.images.values():
        image.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.prepare(seen)


def test_a_missing_or_odd_picture_is_refused(loaded: Loaded, loaded_act: Loaded) -> None:
    front, wrist = loaded.bundle.manifest.cameras.values()
    picture = np.zeros((*SIZE, 3), np.uint8)
    with pytest.raises(BadInput, match=wrist):
        loaded.prepare(Observation(JOINTS, {front: picture}, TASK))
    with pytest.raises(BadInput, match="not RGB"):
        loaded.prepare(Observation(JOINTS, {front: picture, wrist: picture[..., 0]}, TASK))
    with pytest.raises(BadInput, match="not RGB"):
        loaded.prepare(Observation(JOINTS, {front: picture, wrist: picture.astype(np.float32)}, TASK))
    loaded.prepare(observation(loaded.bundle, size=(96, 128)))  # it resizes by itself
    with pytest.raises(BadInput, match="is 128x96, the policy's are 64x48"):
        loaded_act.prepare(observation(loaded_act.bundle, size=(96, 128)))


@pytest.mark.parametrize("shape", [(1, 49, 6), (1, 50, 7), (2, 50, 6), (50,)])
def test_a_chunk_of_another_shape_is_refused(loaded: Loaded, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadPrediction, match="shape"):
        loaded.finish(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_actions_that_are_no_numbers_are_refused(loaded: Loaded, value: float) -> None:
    chunk = torch.zeros(1, 50, 6)
    chunk[0, 49, 5] = value
    with pytest.raises(BadPrediction, match="no numbers"):
        loaded.finish(chunk)


def test_a_policy_that_raises_gives_a_sentence(loaded: Loaded) -> None:
    with pytest.raises(BadPrediction, match="failed to predict: ValueError: All image features are missing"):
        loaded.predict({})


def _with_weights(checkpoint: Path, tmp_path: Path, change: Any) -> Bundle:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors")
    return import_checkpoint(copy, tmp_path / "policies", Wish("it"))


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop(next(name for name in weights if "action_out_proj" in name)),
        lambda weights: weights.update(another=torch.zeros(1)),
        lambda weights: weights.update({"model.state_proj.bias": torch.zeros(3)}),
    ],
)
def test_weights_that_do_not_fit_exactly_are_an_error(smolvla_checkpoint: Path, tmp_path: Path, change: Any) -> None:
    """lerobot's own default loads what fits and leaves the rest random."""
    bundle = _with_weights(smolvla_checkpoint, tmp_path, change)
    with pytest.raises(BadInput, match="lerobot cannot load it"):
        load_policy(bundle)


@pytest.mark.parametrize("changes", [{"type": "unheard_of"}, {"unknown_setting": 1}, {"num_steps": "many"}])
def test_a_config_that_lerobot_does_not_know_is_a_sentence(
    act_checkpoint: Path, smolvla_checkpoint: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    copy = Path(shutil.copytree(smolvla_checkpoint, tmp_path / "checkpoint"))
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(values | changes))
    bundle = import_checkpoint(copy, tmp_path / "policies", Wish("it"))
    with pytest.raises(BadInput, match="lerobot cannot load it"):
        load_policy(bundle)


def test_loading_leaves_no_temporary_files(
    smolvla_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """lerobot's own way leaves one each time; and it prints."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load_policy(smolvla_bundle)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


GUARDED = """
import sys
def forbid(event, arguments):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.sendto", "pickle.find_class")):
        raise SystemExit(f"forbidden: {event} {arguments}")
sys.addaudithook(forbid)

from pathlib import Path
import numpy as np
from agent.inference.bundle import open_bundle
from agent.inference.engine import Observation
from agent.inference.loading import load_policy
import torch
def never(*arguments, **settings):
    raise SystemExit("forbidden: torch.load")
torch.load = torch.hub.load_state_dict_from_url = never
for folder in sys.argv[1:]:
    it = load_policy(open_bundle(Path(folder)))
    images = {name: np.zeros((48, 64, 3), np.uint8) for name in it.bundle.manifest.cameras.values()}
    print(it.finish(it.predict(it.prepare(Observation((0.0,) * 6, images, "reach the red disc")))).shape)
"""


def test_loading_and_predicting_touch_neither_network_nor_pickle(
    smolvla_bundle: Bundle, act_checkpoint: Path, tmp_path: Path
) -> None:
    """In a process where a connection, a name look-up, an unpickled class or torch.load ends everything. The ACT is as
    lerobot trains it: its config asks for ImageNet's weights, which torchvision would download."""
    copy = Path(shutil.copytree(act_checkpoint, tmp_path / "act"))
    values = json.loads((copy / "config.json").read_text())
    values["pretrained_backbone_weights"] = "ResNet18_Weights.IMAGENET1K_V1"
    (copy / "config.json").write_text(json.dumps(values))
    act = import_checkpoint(copy, tmp_path / "policies", Wish())
    result = subprocess.run(
        [sys.executable, "-c", GUARDED, smolvla_bundle.folder, act.folder],
        env={"PATH": "", "HOME": str(tmp_path)},  # no HF_HUB_OFFLINE: the agent sees to it
        capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert result.stdout.splitlines() == ["(50, 6)", "(20, 6)"], result.stderr


def test_the_guard_of_that_test_sees_both(tmp_path: Path) -> None:
    head = GUARDED.split("from pathlib")[0]
    for act in (
        "import pickle, fractions; pickle.loads(pickle.dumps(fractions.Fraction(1)))",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
    ):
        result = subprocess.run([sys.executable, "-c", head + act], capture_output=True, text=True, timeout=30)
        assert "forbidden" in result.stderr


def test_a_hub_client_that_was_imported_online_is_switched_off() -> None:
    code = (
        "import huggingface_hub.constants as hub; before = hub.is_offline_mode();"
        "from agent.inference.loading import go_offline; go_offline(); print(before, hub.is_offline_mode())"
    )
    result = subprocess.run([sys.executable, "-c", code], env={"PATH": ""}, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == ["False", "True"], result.stderr


def test_weights_that_are_no_numbers_fail_the_trial(smolvla_checkpoint: Path, tmp_path: Path) -> None:
    bundle = _with_weights(
        smolvla_checkpoint, tmp_path, lambda weights: weights["model.action_out_proj.bias"].fill_(float("nan"))
    )
    assert open_bundle(bundle.folder)
    with pytest.raises(BadInput, match="no numbers"):
        try_out(bundle)
