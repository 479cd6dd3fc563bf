"""Checkpoints as lerobot writes them, tiny, with seeded random weights, made without a network.

The architecture is the real one, only narrow: what an engine does with these it does with 450 million parameters.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SIZE = (48, 64)
"""Height and width of the pictures these policies were "trained" on."""

MEANS = (0.0, -30.0, 40.0, 20.0, -5.0, 30.0)
SPREADS = (40.0, 30.0, 35.0, 25.0, 50.0, 20.0)

PROMPTS = (
    "reach the red disc",
    "reach the blue disc",
    "push the cube to the green disc",
    "pick up the cube and put it in the bin",
)
"""What the tiny tokenizer has read."""

_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>",
    "<global-img>",
)  # fmt: skip
_IMAGE = 64


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Weights depend on the seed alone, and the random numbers of other tests do not depend on this."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _features(cameras: Sequence[str]) -> dict[str, Any]:
    from lerobot.configs import FeatureType, PolicyFeature

    pictures = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, *SIZE)) for name in cameras}
    return {
        "input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (6,)), **pictures},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (6,))},
    }


def statistics(cameras: Sequence[str] = ()) -> dict[str, dict[str, torch.Tensor]]:
    """Degrees, gripper in percent; pictures from 0 to 1."""
    mean, spread = torch.tensor(MEANS), torch.tensor(SPREADS)
    joints = {"mean": mean, "std": spread, "min": mean - 2 * spread, "max": mean + 2 * spread}
    picture = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    return {"observation.state": joints, "action": joints} | {f"observation.images.{name}": picture for name in cameras}


def vlm(folder: Path) -> Path:
    """Configuration and tokenizer of a vision-language model as SmolVLM2 has them; no weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(_SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f"{prompt}\n" for prompt in PROMPTS], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {name: tokenizer.token_to_id(name) for name in _SPECIAL}
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "SmolVLMProcessor",
            "model_max_length": 512, "bos_token": "<|im_start|>",
            "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>", "fake_image_token": "<fake_token_around_image>", "image_token": "<image>",
            "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
        },
    )  # fmt: skip
    _write(
        folder / "config.json",
        {
            "model_type": "smolvlm", "scale_factor": 2, "image_token_id": ids["<image>"],
            "pad_token_id": ids["<|im_end|>"], "tie_word_embeddings": False,
            "text_config": {
                "model_type": "llama", "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 64,
                "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
                "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": ids["<|im_end|>"],
                "bos_token_id": ids["<|im_start|>"], "eos_token_id": ids["<end_of_utterance>"],
                "tie_word_embeddings": False,
            },
            "vision_config": {
                "model_type": "smolvlm_vision", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": _IMAGE, "patch_size": 16,
            },
        },
    )  # fmt: skip
    picture = {
        "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 1, "rescale_factor": 1 / 255,
        "size": {"longest_edge": _IMAGE}, "max_image_size": {"longest_edge": _IMAGE},
    }  # fmt: skip
    _write(
        folder / "processor_config.json",
        {
            "processor_class": "SmolVLMProcessor",
            "image_seq_len": 4,
            "image_processor": picture | {"image_processor_type": "SmolVLMImageProcessor", "do_image_splitting": False},
            "video_processor": picture
            | {
                "video_processor_type": "SmolVLMVideoProcessor",
                "do_sample_frames": False,
                "num_frames": 8,
                "fps": 1,
                "return_metadata": False,
            },
        },
    )
    return folder


def smolvla(
    folder: Path,
    cameras: Sequence[str] = ("front", "wrist"),
    chunk_size: int = 50,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A SmolVLA of 0.2 million parameters, with its VLM's configuration and tokenizer in `vlm/`."""
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "device": "cpu", "push_to_hub": False, "vlm_model_name": str(vlm(folder / "vlm")), "load_vlm_weights": False,
        "num_vlm_layers": 4, "num_expert_layers": 4, "self_attn_every_n_layers": 2, "expert_width_multiplier": 0.5,
        "chunk_size": chunk_size, "n_action_steps": chunk_size, "num_steps": 4,
        "resize_imgs_with_padding": (_IMAGE, _IMAGE), "tokenizer_max_length": 48, "max_state_dim": 8,
        "max_action_dim": 8, **_features(cameras),
    }  # fmt: skip
    with _seeded(seed):
        policy = SmolVLAPolicy(SmolVLAConfig(**(values | config)))
    _save(folder, policy, make_pre_post_processors(policy.config, dataset_stats=statistics(cameras)))
    return folder


def act(folder: Path, cameras: Sequence[str] = ("front",), chunk_size: int = 20, seed: int = 0, **config: Any) -> Path:
    """An ACT with a ResNet-18, as narrow as lerobot lets it be (11.3 million parameters are the ResNet's)."""
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "device": "cpu", "push_to_hub": False, "chunk_size": chunk_size, "n_action_steps": chunk_size,
        "dim_model": 32, "n_heads": 2, "dim_feedforward": 64, "n_encoder_layers": 1, "n_decoder_layers": 1,
        "n_vae_encoder_layers": 1, "latent_dim": 8, "pretrained_backbone_weights": None, **_features(cameras),
    }  # fmt: skip
    with _seeded(seed):
        policy = ACTPolicy(ACTConfig(**(values | config)))
    _save(folder, policy, make_pre_post_processors(policy.config, dataset_stats=statistics(cameras)))
    return folder


def _save(folder: Path, policy: Any, processors: tuple[Any, Any]) -> None:
    policy.save_pretrained(folder)
    for processor in processors:
        processor.save_pretrained(folder)


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values))
