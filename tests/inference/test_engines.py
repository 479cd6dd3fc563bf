"""Engines against lerobot's own prediction, with the same noise, on tiny policies of the real architecture."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent.config import Policy as Settings
from agent.errors import BadInput, BadPrediction, Fatal
from agent.inference.bundle import FORMAT, POLICY, VLM, Bundle, Manifest
from agent.inference.engine import Actions, Guidance, Observation
from agent.inference.engines import load_engine
from agent.inference.engines.arithmetic import BFloat16, Float32, Int8
from agent.inference.engines.check import EXACT_RELATIVE, cases, compare, picture
from agent.inference.engines.choose import MAKERS, threads
from agent.inference.engines.computer import usable
from agent.inference.engines.cuda import Graphed
from agent.inference.engines.memory import remember, remembered
from agent.inference.engines.reference import Reference
from agent.inference.engines.shorter import Shorter, Views
from agent.inference.latency import COLUMNS, measure
from agent.inference.loading import Loaded, load_policy
from tests.inference import checkpoints

FPS = 30
CHUNK = 50


def bundled(folder: Path, kind: str = "smolvla", **config: Any) -> Bundle:
    """A bundle around a tiny policy; its files are not sealed, which an engine does not care about."""
    made = {"smolvla": checkpoints.smolvla, "act": checkpoints.act}[kind](folder / POLICY, **config)
    if kind == "smolvla":
        shutil.move(made / "vlm", folder / VLM)
    cameras = config.get("cameras", ("front", "wrist") if kind == "smolvla" else ("front",))
    manifest = Manifest(
        format=FORMAT,
        name="tiny",
        type=kind,
        fps=FPS,
        chunk_size=config.get("chunk_size", CHUNK if kind == "smolvla" else 20),
        cameras={f"OBS_IMAGE_{number}": f"observation.images.{name}" for number, name in enumerate(cameras, 1)},
        files={},
        tasks=checkpoints.PROMPTS[:2],
    )
    return Bundle(folder, manifest, "0" * 12)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundled(tmp_path_factory.mktemp("smolvla"))


@pytest.fixture
def loaded(bundle: Bundle) -> Loaded:
    return load_policy(bundle)


def settings(engine: str, **more: Any) -> Settings:
    return Settings(**{"engine": engine, "threads": 1, **more})


def noises(number: int, width: int = 8) -> list[np.ndarray]:
    random = np.random.default_rng(number)
    return [random.standard_normal((CHUNK, width), dtype=np.float32) for _ in range(number)]


def scene(seed: int, task: str = checkpoints.PROMPTS[0], cameras: tuple[str, ...] = ("front", "wrist")) -> Observation:
    random = np.random.default_rng(seed)
    images = {f"observation.images.{name}": picture(random, 48, 64) for name in cameras}
    return Observation((5.0, -20.0, 30.0, 10.0, 0.0, 40.0), images, task)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"cameras": ("front",)},
        {"cameras": ("front", "wrist", "side"), "num_steps": 3},
        {"cameras": ("front",), "empty_cameras": 2},
        {"add_image_special_tokens": True},
        {"pad_language_to": "max_length"},
        {"self_attn_every_n_layers": 3, "chunk_size": 7},
        {"self_attn_every_n_layers": -1},
        {"num_vlm_layers": 2, "num_expert_layers": 2, "expert_width_multiplier": 0.75},
    ],
    ids=lambda config: ", ".join(f"{key}={value}" for key, value in config.items()) or "as usual",
)
def test_exact_gives_what_lerobot_gives(tmp_path: Path, config: dict[str, Any]) -> None:
    """Guided and unguided: the last case of the check is guided."""
    engine = load_engine(bundled(tmp_path, **config), settings("exact"))
    assert engine.traits.name == "exact"
    assert engine.traits.deviation < 1e-3, "degrees"


def test_exact_differs_by_less_than_a_hundred_thousandth(loaded: Loaded, bundle: Bundle) -> None:
    exact, reference = Shorter.of(loaded, Float32()), Reference(loaded)
    for seed, noise in enumerate(noises(3)):
        observation = scene(seed, checkpoints.PROMPTS[seed])
        for guidance in (None, Guidance(np.full((20, 6), 15, np.float32), 4, 12)):
            wanted = reference.predict(observation, guidance, noise)
            found = exact.predict(observation, guidance, noise)
            assert compare([found], [wanted], 0.0).relative <= EXACT_RELATIVE


@pytest.mark.parametrize("arithmetic", [BFloat16(), Int8()], ids=lambda arithmetic: arithmetic.name)
def test_smaller_formats_stay_close_and_are_not_exact(loaded: Loaded, arithmetic: BFloat16 | Int8) -> None:
    observation, (noise,) = scene(1), noises(1)
    wanted = Reference(loaded).predict(observation, None, noise)
    off = compare([Shorter.of(loaded, arithmetic).predict(observation, None, noise)], [wanted], 0.0)
    assert 1e-4 < off.largest < 1.0, "degrees"


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_bytes_do_not_overflow_where_all_factors_are_at_their_limit(sign: float) -> None:
    """Two products of bytes are added in 16 bits on a CPU without VNNI."""
    weight, x = torch.full((8, 512), sign), torch.ones(4, 512)
    torch.testing.assert_close(Int8().linear(weight)(x), x @ weight.T, rtol=0.01, atol=0)


def test_an_engine_beyond_its_bound_refuses_to_start_and_says_by_how_much(bundle: Bundle) -> None:
    with pytest.raises(Fatal, match=r"bf16 differs .* by 0\.0\d+ . at \w+; allowed is 0\.0001 .*shoulder_pan 0\.0"):
        load_engine(bundle, settings("bf16", max_deviation=1e-4))


def test_auto_takes_no_engine_beyond_the_bound(bundle: Bundle) -> None:
    traits = load_engine(bundle, settings("auto", max_deviation=1e-9)).traits
    assert traits.name in ("exact", "reference")
    assert traits.deviation < 1e-3
    assert all(note.endswith("beyond max_deviation") for note in traits.options)


def test_auto_runs_policies_that_only_lerobot_knows(tmp_path: Path) -> None:
    engine = load_engine(bundled(tmp_path, "act"), settings("auto"))
    assert (engine.traits.name, engine.traits.guided, engine.traits.deviation) == ("reference", False, 0.0)
    guidance = Guidance(np.zeros((5, 6), np.float32), 2, 4)
    observation = scene(0, cameras=("front",))
    assert np.array_equal(engine.predict(observation, guidance), engine.predict(observation)), "it cannot be guided"


@pytest.mark.parametrize("config", [{"num_expert_layers": 2}, {"attention_mode": "self_attn"}])
def test_what_the_shorter_way_does_not_know_is_left_to_lerobot(tmp_path: Path, config: dict[str, Any]) -> None:
    made = bundled(tmp_path, cameras=("front",), **config)
    assert load_engine(made, settings("auto")).traits.name == "reference"
    with pytest.raises(BadInput, match="exact cannot run this policy"):
        load_engine(made, settings("exact"))


@pytest.mark.parametrize("engine", ["reference", "exact"])
def test_traits_tell_what_a_chunk_is(bundle: Bundle, engine: str) -> None:
    traits = load_engine(bundle, settings(engine)).traits
    assert (traits.chunk_size, traits.period_ns, traits.place, traits.guided) == (CHUNK, 33_333_333, "here", True)
    assert traits.cameras == {"OBS_IMAGE_1": "observation.images.front", "OBS_IMAGE_2": "observation.images.wrist"}
    assert traits.options == ()


@pytest.mark.parametrize("engine", ["reference", "exact"])
def test_chunks_depend_on_noise_task_and_picture(bundle: Bundle, engine: str) -> None:
    running = load_engine(bundle, settings(engine))
    first, second = noises(2)
    chunk = running.predict(scene(0), None, first)
    assert chunk.shape == (CHUNK, 6)
    assert chunk.dtype == np.float32
    assert np.array_equal(chunk, running.predict(scene(0), None, first))
    assert not np.array_equal(chunk, running.predict(scene(0), None, second))
    assert not np.array_equal(chunk, running.predict(scene(1), None, first))
    assert not np.array_equal(chunk, running.predict(scene(0, checkpoints.PROMPTS[3]), None, first))
    assert not np.array_equal(running.predict(scene(0)), running.predict(scene(0))), "noise of its own each time"


@pytest.mark.parametrize("engine", ["reference", "exact"])
def test_a_guided_chunk_begins_with_the_actions_on_their_way(bundle: Bundle, engine: str) -> None:
    running = load_engine(bundle, settings(engine, flow_steps=10))
    on_their_way = np.linspace(-30, 60, 20 * 6, dtype=np.float32).reshape(20, 6)
    (noise,) = noises(1)

    def distance(chunk: Actions) -> float:
        return float(abs(chunk[:5] - on_their_way[:5]).mean())

    free = distance(running.predict(scene(0), None, noise))
    guided = distance(running.predict(scene(0), Guidance(on_their_way, 5, 12), noise))
    assert guided < free / 5


def test_fewer_flow_steps_are_reported_and_compared_with_lerobot_taking_as_few(bundle: Bundle) -> None:
    traits = load_engine(bundle, settings("exact", flow_steps=2)).traits
    assert traits.options == ("flow_steps=2",)
    assert traits.deviation < 1e-3


def test_flow_steps_mean_nothing_to_a_policy_that_does_not_flow(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="act policies do not flow"):
        load_engine(bundled(tmp_path, "act"), settings("auto", flow_steps=5))


def test_an_unchanged_picture_is_looked_at_once(loaded: Loaded) -> None:
    looked: list[float] = []

    def eyes(image: torch.Tensor) -> torch.Tensor:
        looked.append(float(image.sum()))
        return image * 2

    views = Views(eyes, reuse=True)
    pixels = picture(np.random.default_rng(0), 48, 64)
    image = torch.from_numpy(pixels).float()
    assert torch.equal(views.see("front", pixels, image), views.see("front", pixels.copy(), image))
    assert len(looked) == 1
    views.see("wrist", pixels, image)
    assert len(looked) == 2, "another camera's picture is another picture"
    pixels[0, 0, 0] ^= 1  # in place, as a camera's buffer is overwritten
    views.see("front", pixels, image)
    assert len(looked) == 3


def test_reused_pictures_change_nothing(bundle: Bundle) -> None:
    reusing, plain = load_engine(bundle, settings("exact", reuse_vision=True)), load_engine(bundle, settings("exact"))
    assert reusing.traits.options == ("reuse_vision",)
    for seed, noise in zip((0, 0, 1, 0), noises(4), strict=True):
        assert np.array_equal(reusing.predict(scene(seed), None, noise), plain.predict(scene(seed), None, noise))


def test_the_policy_s_own_weights_are_let_go(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Loaded] = []

    def keeping(made: Bundle) -> Loaded:
        kept.append(load_policy(made))
        return kept[0]

    monkeypatch.setattr("agent.inference.engines.choose.load_policy", keeping)
    load_engine(bundle, settings("exact"))
    assert not list(kept[0].policy.parameters())


@pytest.mark.parametrize(
    ("actions", "sentence"),
    [
        (np.zeros((49, 6)), r"shape \(49, 6\); a chunk has shape \(50, 6\)"),
        (np.zeros((50, 7)), r"shape \(50, 7\)"),
        (np.where(np.arange(300).reshape(50, 6) == 14, np.nan, 0), "nan for elbow_flex in action 2, and 1 of 300"),
        (np.full((50, 6), np.inf), "inf for shoulder_pan in action 0, and 300 of 300"),
    ],
)
def test_what_is_no_chunk_is_not_acted_on(actions: np.ndarray, sentence: str) -> None:
    with pytest.raises(BadPrediction, match=sentence):
        usable(actions.astype(np.float32), CHUNK)


@pytest.mark.parametrize("engine", ["reference", "exact"])
def test_a_policy_that_gives_nan_is_not_started(tmp_path: Path, engine: str) -> None:
    from safetensors.torch import load_file, save_file

    made = bundled(tmp_path)
    file = made.policy / "model.safetensors"
    tensors = load_file(file)
    tensors["model.action_out_proj.bias"][2] = torch.nan
    save_file(tensors, file)
    with pytest.raises(BadPrediction):
        load_engine(made, settings(engine))


def test_the_check_asks_the_same_on_every_host(bundle: Bundle, loaded: Loaded) -> None:
    first, second = (cases(bundle.manifest, loaded.policy.config) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.observation.joints == other.observation.joints
        assert np.array_equal(one.noise, other.noise)
        for name, image in one.observation.images.items():
            assert np.array_equal(image, other.observation.images[name])
    assert len({case.observation.joints for case in first}) == len(first)
    assert {case.observation.task for case in first} == set(bundle.manifest.tasks)


def test_a_core_is_left_to_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, wanted in ((8, 7), (2, 1), (1, 1)):
        monkeypatch.setattr("os.cpu_count", lambda count=cores: count)
        assert threads(Settings()) == wanted
    assert threads(Settings(threads=4)) == 4


@pytest.mark.parametrize("engine", ["reference", "exact"])
def test_stages_add_up_to_a_chunk(loaded: Loaded, engine: str) -> None:
    computer = Reference(loaded) if engine == "reference" else Shorter.of(loaded, Float32())
    stages = computer.profile(scene(0))
    assert set(stages) == {"chunk", "vision", "prefix", "step"}
    assert all(seconds > 0 for seconds in stages.values())
    assert stages["vision"] + stages["prefix"] + 4 * stages["step"] <= stages["chunk"] * 1.0001


def test_cuda_computes_what_bf16_computes(loaded: Loaded) -> None:
    """The same functions, recorded on a GPU and called as they are on a CPU: all that can be tested without one."""
    graphed, plain = Graphed.build(loaded), Shorter.of(loaded, BFloat16())
    (noise,) = noises(1)
    for guidance in (None, Guidance(np.full((20, 6), 15, np.float32), 4, 12)):
        assert np.array_equal(graphed.predict(scene(0), guidance, noise), plain.predict(scene(0), guidance, noise))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the engine starts")
def test_cuda_without_a_gpu_says_so(bundle: Bundle) -> None:
    with pytest.raises(BadInput, match="PyTorch finds none"):
        load_engine(bundle, settings("cuda"))


def test_auto_does_not_try_all_engines_again(bundle: Bundle, tmp_path: Path) -> None:
    here = settings("auto")
    assert remembered(tmp_path, here, MAKERS) is None
    remember(tmp_path, here, "exact")
    assert remembered(tmp_path, here, MAKERS) == "exact"
    assert load_engine(bundle, here, cache=tmp_path).traits.name in ("exact", "reference")
    assert remembered(tmp_path, settings("auto", max_deviation=0.5), MAKERS) is None, "another bound"
    assert remembered(tmp_path, here, {}) is None, "an engine that is gone"
    (tmp_path / "auto.json").write_text('{"engine": "ex')
    assert remembered(tmp_path, here, MAKERS) is None, "cut off"


def test_latency_is_measured_by_stage_and_judged(bundle: Bundle) -> None:
    found = measure(load_engine(bundle, settings("exact", reuse_vision=True)), scene(0), chunks=3)
    assert None not in (found.vision_s, found.prefix_s, found.step_s)
    assert found.chunk_s > found.vision_s > 1e-4, "the pictures change: nothing is reused"
    assert found.sentence.startswith("2 cameras, 50 actions at 30 Hz: ")
    assert len(found.row) == len(COLUMNS)


def test_latency_of_an_engine_that_cannot_be_looked_into_is_the_whole(tmp_path: Path) -> None:
    found = measure(load_engine(bundled(tmp_path, "act"), settings("auto")), scene(0, cameras=("front",)), chunks=1)
    assert (found.vision_s, found.prefix_s, found.step_s) == (None, None, None)
    assert found.row[1:4] == ("-", "-", "-")
