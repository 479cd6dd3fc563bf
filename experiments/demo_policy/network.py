"""A small SmolVLA: lerobot's own policy class, its VLM configuration and tokenizer written here instead of fetched."""

from pathlib import Path
from typing import Any, Final

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from agent.virtual.scene import COLOURS
from experiments.demo_policy.recipe import CAMERAS, CHUNK, Network, task_text

JOINTS: Final = 6
VOCABULARY: Final = 320  # the 256 bytes, the special tokens, and the words of the task
TEXT_TOKENS: Final = 16
SPECIAL: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
)


def write_vlm(folder: Path, network: Network) -> None:
    """Configuration, processor and tokenizer of the backbone, as `AutoProcessor.from_pretrained(folder)` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": network.vision_width,
            "intermediate_size": network.vision_inner,
            "num_hidden_layers": network.vision_layers,
            "num_attention_heads": network.vision_heads,
            "image_size": network.image_px,
            "patch_size": network.patch_px,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": network.width,
            "intermediate_size": network.inner,
            "num_hidden_layers": network.layers,
            "num_attention_heads": network.heads,
            "num_key_value_heads": network.key_heads,
            "head_dim": network.head_width,
            "max_position_embeddings": 512,
            # The usual 0.02 suits widths of a thousand; here it would leave every layer whispering for long.
            "initializer_range": network.width**-0.5,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        scale_factor=network.scale,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    edge = {"longest_edge": network.image_px}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=edge, max_image_size=edge),
        video_processor=SmolVLMVideoProcessor(
            size=edge, max_image_size=edge, do_sample_frames=False, num_frames=8, fps=1
        ),
        tokenizer=tokenizer,
        image_seq_len=tokens_per_camera(network),
        chat_template="{% for m in messages %}{{ m }}{% endfor %}",
    )
    config.save_pretrained(folder)
    processor.save_pretrained(folder)


def tokens_per_camera(network: Network) -> int:
    return (network.image_px // network.patch_px // network.scale) ** 2


def build(vlm: Path, network: Network, seed: int) -> SmolVLAPolicy:
    """A policy with random weights, all of which learn."""
    torch.manual_seed(seed)
    features = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 480, 640)) for name in CAMERAS}
    policy = SmolVLAPolicy(
        SmolVLAConfig(
            device="cpu",
            push_to_hub=False,
            vlm_model_name=str(vlm),
            load_vlm_weights=False,
            num_vlm_layers=network.layers,
            num_expert_layers=network.layers,
            self_attn_every_n_layers=2,
            expert_width_multiplier=network.expert_share,
            chunk_size=CHUNK,
            n_action_steps=CHUNK,
            num_steps=network.flow_steps,
            resize_imgs_with_padding=(network.image_px, network.image_px),
            tokenizer_max_length=TEXT_TOKENS,
            max_state_dim=network.state_width,
            max_action_dim=network.state_width,
            freeze_vision_encoder=False,
            train_expert_only=False,
            input_features={"observation.state": PolicyFeature(FeatureType.STATE, (JOINTS,)), **features},
            output_features={"action": PolicyFeature(FeatureType.ACTION, (JOINTS,))},
        )
    )
    policy.requires_grad_(True)  # lerobot leaves the last layers out, for the sake of distributed training
    return policy


def tower(policy: SmolVLAPolicy) -> list[torch.nn.Module]:
    """What sees: the vision transformer and the projection of its patches to tokens."""
    backbone: Any = policy.model.vlm_with_expert.get_vlm_model()
    return [backbone.vision_model, backbone.connector]


def load_tower(policy: SmolVLAPolicy, pretrained: Path) -> None:
    """Fill the tower from the checkpoint of pretraining."""
    with safe_open(pretrained, "pt") as file:
        for index, part in enumerate(tower(policy)):
            start = f"weights.{index}."
            part.load_state_dict(
                {key.removeprefix(start): file.get_tensor(key) for key in file.keys() if key.startswith(start)}  # noqa: SIM118
            )


def _tokenizer() -> PreTrainedTokenizerFast:
    pieces = Tokenizer(models.BPE(unk_token=None))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator([f"{task_text(f'{colour} disc')}\n" for colour in COLOURS] * 4, trainer)
    roles = {"bos": "<|im_start|>", "eos": "<end_of_utterance>", "unk": "<|endoftext|>", "pad": "<|im_end|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        model_max_length=8192,
        **{f"{role}_token": token for role, token in roles.items()},
        extra_special_tokens={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )
