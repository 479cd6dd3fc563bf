"""A policy as lerobot saves it: one look at its JSON files, and whether an SO arm can be moved with it.

Needs neither torch nor lerobot, so that a policy is judged before any of their code reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from agent.errors import BadInput
from agent.inference.contents import Tensor, read_json, tensors
from agent.messages import JOINTS

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
ADAPTER: Final = "adapter_model.safetensors"
PREPROCESSOR: Final = "policy_preprocessor.json"
POSTPROCESSOR: Final = "policy_postprocessor.json"

STATE: Final = "observation.state"
ACTION: Final = "action"
LANGUAGE: Final = "tokenizer_processor"
NORMALIZER: Final = "normalizer_processor"
UNNORMALIZER: Final = "unnormalizer_processor"

STEPS: Final = frozenset(
    {
        "absolute_actions_processor",
        "device_processor",
        "normalizer_processor",
        "pi0_new_line_processor",
        "relative_actions_processor",
        "rename_observations_processor",
        "smolvla_new_line_processor",
        "to_batch_processor",
        "tokenizer_processor",
        "unnormalizer_processor",
        "xvla_add_domain_id",
        "xvla_image_scale",
        "xvla_image_to_float",
        "xvla_imagenet_normalize",
    }
)
"""Steps that only compute. lerobot itself would import any class that the JSON names and call it with any arguments,
and some of its registered steps fetch models or trust remote code."""

STATISTICS: Final[Mapping[str, tuple[str, ...]]] = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}

MIGRATE: Final = (
    "A checkpoint of lerobot before 0.4 keeps its statistics in the weights: run "
    "`python -m lerobot.processor.migrate_policy_normalization --pretrained-path DIR` first."
)


@dataclass(frozen=True)
class Checkpoint:
    """What the files of a checkpoint say about it."""

    folder: Path
    type: str
    chunk_size: int
    cameras: tuple[str, ...]  # feature names, in the policy's order; empty views that only pad are left out
    every_camera: bool  # whether it needs all of them at once
    vlm: str | None  # name or path of the vision-language model, for policies that are built around one
    speaks: bool  # whether it reads the task's text
    files: tuple[str, ...]  # names of all that belong to it


def read(folder: Path, statistics: bool = True) -> Checkpoint:
    """Raises BadInput when files are missing, or when this is no policy for an SO arm; without `statistics`, those
    are not looked at."""
    config = read_json(_there(folder, CONFIG))
    if config.get("use_peft") or ((folder / ADAPTER).exists() and not (folder / WEIGHTS).exists()):
        raise BadInput(
            f"{folder} is an adapter (LoRA), not a whole policy.",
            "Merge it into its base with peft's `merge_and_unload()` and save the result.",
        )
    kind = config.get("type")
    if not isinstance(kind, str) or not kind.isidentifier():
        raise BadInput(f"{folder / CONFIG} names no type of policy.", "Is it the config.json of a lerobot policy?")
    if config.get("n_obs_steps", 1) != 1:
        raise BadInput(
            f"This {kind} policy looks at {config['n_obs_steps']} observations at once; the agent gives it one.",
            "Use a policy that was trained with n_obs_steps = 1.",
        )
    if config.get("adapt_to_pi_aloha"):
        raise BadInput("This policy converts its joints to those of an Aloha robot.", "Train it for an SO arm.")
    chunk_size = config.get("chunk_size", config.get("horizon"))
    if not isinstance(chunk_size, int) or not 1 <= chunk_size <= 1000:
        raise BadInput(f"{folder / CONFIG}: chunk_size is {chunk_size!r}.", "It must be 1 to 1000 actions.")
    inputs, outputs = _features(folder, config, "input_features"), _features(folder, config, "output_features")
    cameras = _check_features(kind, inputs, outputs)
    vlm = config.get("vlm_model_name")
    before = _steps(folder, PREPROCESSOR)
    after = _steps(folder, POSTPROCESSOR)
    checkpoint = Checkpoint(
        folder=folder,
        type=kind,
        chunk_size=chunk_size,
        cameras=cameras,
        every_camera=kind != "smolvla",  # lerobot's SmolVLA leaves absent views out
        vlm=vlm if isinstance(vlm, str) else None,
        speaks=any(step["registry_name"] == LANGUAGE for step in before),
        files=(CONFIG, WEIGHTS, PREPROCESSOR, POSTPROCESSOR, *_state_files(before), *_state_files(after)),
    )
    for name in checkpoint.files:
        _there(folder, name)
    if statistics:
        _check_statistics(folder, before, NORMALIZER, config, [STATE, *cameras])
        _check_statistics(folder, after, UNNORMALIZER, config, [ACTION])
    return checkpoint


def _there(folder: Path, name: str) -> Path:
    path = folder / name
    if path.is_file():
        return path
    hint = MIGRATE if name in (PREPROCESSOR, POSTPROCESSOR) else "Name the folder that holds config.json and weights."
    raise BadInput(f"{folder} has no {name}.", hint)


def _features(folder: Path, config: dict[str, Any], which: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> type and shape."""
    try:
        return {
            str(name): (str(about["type"]), tuple(int(size) for size in about["shape"]))
            for name, about in config[which].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{folder / CONFIG}: {which} cannot be read.", "Is it a lerobot policy's?") from error


type _Features = dict[str, tuple[str, tuple[int, ...]]]


def _check_features(kind: str, inputs: _Features, outputs: _Features) -> tuple[str, ...]:
    """The cameras, after everything else was found to fit six joints."""
    joints = f"An SO arm has {len(JOINTS)}: {', '.join(JOINTS)}."
    if set(outputs) != {ACTION}:
        raise BadInput(f"This {kind} policy gives {', '.join(outputs) or 'nothing'} instead of an action.", joints)
    if outputs[ACTION][1] != (len(JOINTS),):
        dimensions = _dimensions(outputs[ACTION][1])
        raise BadInput(f"This policy's actions have {dimensions} dimensions: it was made for another robot.", joints)
    cameras = []
    for name, (type_, shape) in inputs.items():
        match type_:
            case "VISUAL" if "image" in name and len(shape) == 3:
                if not name.rpartition(".")[2].startswith("empty_camera"):
                    cameras.append(name)
            case "STATE" if name == STATE:
                if shape != (len(JOINTS),):
                    raise BadInput(f"This policy expects a state of {_dimensions(shape)} dimensions.", joints)
            case _:
                raise BadInput(
                    f"This policy needs {name} ({type_.lower()}), which the station does not measure.",
                    f"It has cameras and {STATE}.",
                )
    if not cameras:
        raise BadInput("This policy looks at no camera.", "Only policies that see can be run.")
    return tuple(cameras)


def _dimensions(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "no"


def _steps(folder: Path, name: str) -> list[dict[str, Any]]:
    steps = read_json(_there(folder, name)).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise BadInput(f"{folder / name} lists no steps.", MIGRATE)
    for step in steps:
        asked = step.get("registry_name") or step.get("class") or "?"
        if step.get("registry_name") not in STEPS or not isinstance(step.get("config", {}), dict):
            raise BadInput(
                f"{folder / name} asks for the step {asked}, which is not known to be harmless.",
                f"Known are {', '.join(sorted(STEPS))}.",
            )
    return steps


def _state_files(steps: list[dict[str, Any]]) -> list[str]:
    names = [step["state_file"] for step in steps if step.get("state_file") is not None]
    for name in names:
        if not isinstance(name, str) or PurePosixPath(name).name != name or not name.endswith(".safetensors"):
            raise BadInput(f"A processor keeps its state in {name!r}.", "It must be a safetensors file beside it.")
    return names


def _check_statistics(
    folder: Path, steps: list[dict[str, Any]], kind: str, config: dict[str, Any], features: list[str]
) -> None:
    """lerobot silently passes values through unscaled where it finds no statistics (`lerobot/smolvla_base` as
    published: an arm would take the model's standard scores for degrees)."""
    scaling = [step for step in steps if step["registry_name"] == kind]
    for feature in features:
        if feature == STATE and STATE not in config["input_features"]:
            continue
        type_ = {STATE: "STATE", ACTION: "ACTION"}.get(feature, "VISUAL")
        declared = (config.get("normalization_mapping") or {}).get(type_, "IDENTITY")
        if not scaling and declared != "IDENTITY":
            raise BadInput(f"{feature} should be scaled ({declared}), but no step does it.", MIGRATE)
        for step in scaling:
            settings = step.get("config", {})
            mode = settings.get("norm_map", {}).get(type_, "IDENTITY")
            if mode not in STATISTICS:
                raise BadInput(f"{feature} is scaled by {mode!r}.", f"Known are {', '.join(STATISTICS)}.")
            if feature != ACTION and mode != "IDENTITY" and feature not in settings.get("features", {}):
                raise BadInput(f"{feature} is not among what the {kind} scales.", OWN_STATISTICS)
            _check_shapes(
                feature, STATISTICS[mode], tensors(folder / step["state_file"]) if "state_file" in step else {}
            )


def _check_shapes(feature: str, names: tuple[str, ...], found: dict[str, Tensor]) -> None:
    for name in names:
        tensor = found.get(f"{feature}.{name}")
        if tensor is None:
            raise BadInput(_missing(feature, name, list(found)), OWN_STATISTICS)
        if feature in (STATE, ACTION) and tensor.shape != (len(JOINTS),):
            raise BadInput(
                f"The statistics of {feature} have {_dimensions(tensor.shape)} dimensions, not {len(JOINTS)}.",
                "The policy was made for another robot.",
            )


OWN_STATISTICS: Final = "Fine-tune it on episodes of this arm, or give those of a dataset: --statistics DATASET."


def _missing(feature: str, name: str, found: list[str]) -> str:
    others = sorted({key.partition(".")[0] for key in found if key.endswith(f".{feature}.{name}")})
    of = f", only of the datasets {', '.join(others)}" if others else ""
    return f"The policy has no statistics ({name}) of {feature}{of}: its actions would not be degrees."
