"""The policy as lerobot's checkpoint folder, with its VLM folder beside it. It holds nothing that could run."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

VLM: Final = "vlm"


def processors(policy: SmolVLAPolicy, vlm: Path, statistics: dict[str, dict[str, torch.Tensor]]) -> tuple[Any, Any]:
    """lerobot's pre- and post-processor: task text to tokens, joints to and from standard deviations."""
    policy.config.vlm_model_name = str(vlm)
    return make_pre_post_processors(policy.config, dataset_stats=statistics)


def export(folder: Path, policy: SmolVLAPolicy, vlm: Path, statistics: dict[str, dict[str, torch.Tensor]]) -> Path:
    """Write `folder` anew: config.json, model.safetensors, processors, `vlm/`."""
    unfinished = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    before, after = processors(policy, vlm, statistics)
    policy.save_pretrained(unfinished)
    before.save_pretrained(unfinished)
    after.save_pretrained(unfinished)
    shutil.copytree(vlm, unfinished / VLM)
    for file in unfinished.glob("*.json"):
        # Where it was made says nothing to whoever loads it; the importer names the folder it lies in.
        file.write_text(json.dumps(_placed(json.loads(file.read_text()), str(vlm)), indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder


def load(folder: Path) -> tuple[SmolVLAPolicy, tuple[Any, Any]]:
    """What was exported, as anybody would load it: the policy and its processors."""
    config = PreTrainedConfig.from_pretrained(folder)
    config.vlm_model_name = str(folder / VLM)
    policy = SmolVLAPolicy.from_pretrained(folder, config=config, strict=True)
    overrides = {
        "tokenizer_processor": {"tokenizer_name": str(folder / VLM)},
        "device_processor": {"device": "cpu"},
    }
    return policy, make_pre_post_processors(config, pretrained_path=str(folder), preprocessor_overrides=overrides)


def fingerprint(folder: Path) -> str:
    """Twelve hex digits of the weights' SHA-256."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:12]


def _placed(value: Any, vlm: str) -> Any:
    if isinstance(value, dict):
        return {key: _placed(each, vlm) for key, each in value.items()}
    if isinstance(value, list):
        return [_placed(each, vlm) for each in value]
    return VLM if value == vlm else value
