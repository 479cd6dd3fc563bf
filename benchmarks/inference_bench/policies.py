"""The policies that are timed: random weights in the real layouts, made without a network."""

import json
from pathlib import Path
from typing import Any, Final

import torch

from agent.inference.bundle import FORMAT, VLM, Bundle, Manifest
from agent.inference.engine import Observation
from agent.inference.engines.check import cases
from agent.inference.loading import Loaded
from tests.inference import checkpoints

CAMERAS: Final = ("front", "wrist")
FEATURES: Final = tuple(f"observation.images.{name}" for name in CAMERAS)
CHUNK: Final = 50
FPS: Final = 30
SEED: Final = 0

FULL_SIZE: Final = (480, 640)  # height and width of the cameras' pictures
FULL_VLM: Final[dict[str, Any]] = {
    "scale_factor": 4,
    "text_config": {
        "vocab_size": 49280, "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
        "num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "max_position_embeddings": 8192,
        "rope_theta": 100000,
    },
    "vision_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    },
}  # fmt: skip
"""What SmolVLM2-500M-Video-Instruct says of itself where the tiny one differs; SmolVLA cuts it to 16 layers."""


def tiny(folder: Path) -> Loaded:
    """0.2 million parameters: to see whether the benchmark runs."""
    return _policy(folder, {}, (48, 64), (64, 64), {"num_vlm_layers": 4, "num_steps": 4, "max_state_dim": 8})


def full(folder: Path) -> Loaded:
    """The 450 million parameters of lerobot/smolvla_base: 512 x 512 pixels a camera, 10 flow steps."""
    return _policy(folder, FULL_VLM, FULL_SIZE, (512, 512), {})


def full_weights(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of its weights, without making any."""
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    with torch.device("meta"):
        policy = SmolVLAPolicy(_settings(folder, FULL_VLM, FULL_SIZE, (512, 512), {}))
    return {name: tuple(value.shape) for name, value in policy.state_dict().items()}


def _policy(
    folder: Path, vlm: dict[str, Any], picture: tuple[int, int], resize: tuple[int, int], config: dict[str, Any]
) -> Loaded:
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    settings = _settings(folder, vlm, picture, resize, config)
    torch.manual_seed(SEED)
    policy = SmolVLAPolicy(settings).eval().requires_grad_(False)
    before, after = make_pre_post_processors(settings, dataset_stats=checkpoints.statistics(CAMERAS))
    views = {f"OBS_IMAGE_{number}": name for number, name in enumerate(FEATURES, 1)}
    manifest = Manifest(FORMAT, "random", "smolvla", FPS, CHUNK, views, {}, tasks=checkpoints.PROMPTS[:2])
    return Loaded(Bundle(folder, manifest, ""), policy, before, after, "cpu", dict.fromkeys(FEATURES))


def _settings(
    folder: Path, vlm: dict[str, Any], picture: tuple[int, int], resize: tuple[int, int], config: dict[str, Any]
) -> Any:
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    inputs = {name: PolicyFeature(FeatureType.VISUAL, (3, *picture)) for name in FEATURES}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (6,))
    return SmolVLAConfig(
        device="cpu",
        push_to_hub=False,
        vlm_model_name=str(_vlm(folder / VLM, vlm)),
        chunk_size=CHUNK,
        n_action_steps=CHUNK,
        resize_imgs_with_padding=resize,
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        **config,
    )


def _vlm(folder: Path, changes: dict[str, Any]) -> Path:
    """The tiny vision-language model's files, with other dimensions."""
    checkpoints.vlm(folder)
    file = folder / "config.json"
    values = json.loads(file.read_text())
    for name, value in changes.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(values))
    return folder


def observation(loaded: Loaded) -> Observation:
    """What a policy sees in the benchmark: pictures of the cameras' own size."""
    return cases(loaded.bundle.manifest, loaded.policy.config, number=1)[0].observation
