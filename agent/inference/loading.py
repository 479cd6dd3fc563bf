"""From a verified bundle to a policy in memory, by lerobot's own classes; for the process that runs policies.

No network and no pickle: weights and statistics are safetensors, all names that lerobot would look up are folders of
the bundle, and Hugging Face's client is switched off.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from agent.errors import AgentError, BadInput, BadPrediction
from agent.inference.bundle import POLICY, VLM, Bundle
from agent.inference.checkpoint import LANGUAGE, POSTPROCESSOR, PREPROCESSOR
from agent.inference.contents import read_json
from agent.inference.engine import Actions, Image, Observation
from agent.messages import JOINTS

if TYPE_CHECKING:
    import torch

OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

PROMPTS_KEPT: Final = 16
"""A station is told a handful of tasks; each costs some 50 numbers."""

RUN_TIME: Final[dict[str, Any]] = {
    "use_amp": False,
    "push_to_hub": False,
    "use_peft": False,
    "load_vlm_weights": False,  # all weights are in the checkpoint
    "pretrained_backbone_weights": None,  # torchvision would download and unpickle them, to be overwritten at once
    "compile_model": False,  # 70 s, for little
    "rtc_config": None,  # guidance is the engines' own
}
"""Settings of the training run that must not reach a robot, for policies that have them."""


DRAWING: Final = frozenset(
    {"uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_"}
)
"""What fills a tensor with random numbers: of torch.Tensor, torch.nn.init, and transformers' copy of the latter."""


@dataclass(frozen=True)
class Loaded:
    """A policy that can predict, with lerobot's own processors. Not for two threads at once."""

    bundle: Bundle
    policy: Any  # lerobot's PreTrainedPolicy, in evaluation mode
    preprocessor: Any
    postprocessor: Any
    device: str
    sizes: dict[str, tuple[int, int] | None]  # feature -> height and width it must have; None: the policy resizes

    def prepare(self, observation: Observation) -> dict[str, Any]:
        """What `policy.predict_action_chunk` takes: normalised tensors with a batch of one, and the task's tokens.

        Raises BadInput when a picture is missing or not one that this policy can look at.
        """
        import torch
        from lerobot.policies.utils import prepare_observation_for_inference

        values: dict[str, Any] = {"observation.state": np.asarray(observation.joints, np.float32)}
        for feature, size in self.sizes.items():
            values[feature] = _checked(feature, observation.images.get(feature), size)
        raw = prepare_observation_for_inference(values, torch.device("cpu"), observation.task)
        batch: dict[str, Any] = self.preprocessor(raw)
        return batch

    def predict(self, batch: dict[str, Any], **how: Any) -> "torch.Tensor":
        """lerobot's own prediction, shape (1, n, 6), normalised. Raises BadPrediction when it fails."""
        with _predicting():
            chunk: torch.Tensor = self.policy.predict_action_chunk(dict(batch), **how)
        return chunk

    def finish(self, chunk: "torch.Tensor") -> Actions:
        """A predicted chunk, shape (1, n, 6) or (n, 6), in degrees and percent, shape (n, 6).

        Raises BadPrediction when it has another shape, or holds anything but finite numbers.
        """
        batched = chunk if chunk.ndim == 3 else chunk[None]
        expected = (1, self.bundle.manifest.chunk_size, len(JOINTS))
        if tuple(batched.shape) != expected:
            raise BadPrediction(f"The policy gave a chunk of shape {tuple(chunk.shape)}; expected {expected}.")
        actions: Actions = self.postprocessor(batched.float())[0].detach().cpu().numpy().astype(np.float32)
        if not np.isfinite(actions).all():
            raise BadPrediction("The policy gave actions that are no numbers.", "Its weights may be broken: verify it.")
        return actions


def go_offline() -> None:
    """Switch Hugging Face's client off for this process, whether or not it was imported already."""
    os.environ.update(OFFLINE)
    if hub := sys.modules.get("huggingface_hub.constants"):
        vars(hub)["HF_HUB_OFFLINE"] = True  # read from the environment when it was imported, and at each request


def load_policy(bundle: Bundle, device: str = "cpu") -> Loaded:
    """Read a bundle that `open_bundle` returned. Takes seconds: it imports torch and lerobot.

    Raises BadInput when lerobot cannot make a policy of it: unknown type or setting, weights that do not fit.
    """
    go_offline()
    with _quiet(), _sentence(bundle):
        config = _config(bundle, device)
        policy = _weights(bundle, config, device)
        preprocessor, postprocessor = _processors(bundle, config, device)
    resizes = getattr(config, "resize_imgs_with_padding", None) is not None
    sizes = {
        feature: None if resizes else tuple(config.image_features[feature].shape[1:])
        for feature in config.image_features
        if feature in bundle.manifest.cameras.values()
    }
    return Loaded(bundle, policy, preprocessor, postprocessor, device, sizes)


def _config(bundle: Bundle, device: str) -> Any:
    import draccus
    import lerobot.policies  # noqa: F401  (registers the policies)
    from lerobot.configs import PreTrainedConfig

    values = read_json(bundle.policy / "config.json")
    cls = PreTrainedConfig.get_choice_class(values.pop("type"))
    values |= {"device": device} | {key: value for key, value in RUN_TIME.items() if key in values}
    if "vlm_model_name" in values:
        values["vlm_model_name"] = str(bundle.folder / VLM)
    # lerobot's from_pretrained does the same, but leaves a copy in the folder for temporary files each time.
    return draccus.decode(cls, values)


def _weights(bundle: Bundle, config: Any, device: str) -> Any:
    from lerobot.policies.factory import get_policy_class

    cls = get_policy_class(config.type)
    with _without_random_weights():  # strict: every one of them is overwritten
        policy = cls.from_pretrained(bundle.policy, config=config, strict=True)
    return policy.to(device).eval().requires_grad_(False)


def _without_random_weights() -> Any:
    """A mode of torch in which drawing random numbers into a tensor leaves it as it is. Of the time to load 450
    million parameters, four fifths went into numbers that are overwritten at once (49 s of wall time, now 11)."""
    from torch.overrides import TorchFunctionMode

    class Blank(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in DRAWING:
                return args[0] if args else kwargs["tensor"]
            return func(*args, **(kwargs or {}))

    return Blank()


def _processors(bundle: Bundle, config: Any, device: str) -> tuple[Any, Any]:
    from lerobot.policies.factory import make_pre_post_processors
    from transformers import AutoTokenizer

    before: dict[str, Any] = {"device_processor": {"device": device}}
    if bundle.vlm:
        tokenizer = AutoTokenizer.from_pretrained(bundle.vlm, local_files_only=True, trust_remote_code=False)
        before[LANGUAGE] = {"tokenizer": _Remembering(tokenizer)}
    after = {"device_processor": {"device": "cpu"}}
    both: tuple[Any, Any] = make_pre_post_processors(
        config,
        str(bundle.policy),
        preprocessor_overrides=_for(bundle, PREPROCESSOR, before),
        postprocessor_overrides=_for(bundle, POSTPROCESSOR, after),
    )
    return both


def _for(bundle: Bundle, file: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Those of the overrides whose step is there: lerobot refuses the others."""
    steps = {step["registry_name"] for step in read_json(bundle.folder / POLICY / file)["steps"]}
    return {name: values for name, values in overrides.items() if name in steps}


class _Remembering:
    """A tokenizer that reads each text once. lerobot's step calls it for every observation."""

    def __init__(self, tokenizer: Callable[..., Any]) -> None:
        self._tokenizer = tokenizer
        self._read: dict[str, Any] = {}

    def __call__(self, text: list[str], **how: Any) -> Any:
        key = repr((text, sorted(how.items())))
        if key not in self._read:
            if len(self._read) >= PROMPTS_KEPT:
                self._read.pop(next(iter(self._read)))
            self._read[key] = self._tokenizer(text, **how)
        return self._read[key]


def _checked(feature: str, image: Image | None, size: tuple[int, int] | None) -> Image:
    if image is None:
        raise BadInput(f"The policy needs a picture of {feature}, and none was given.", "Check the mapping of cameras.")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise BadInput(f"The picture of {feature} has shape {image.shape} of {image.dtype}, not RGB of 8 bits.")
    if size and image.shape[:2] != size:
        raise BadInput(
            f"The picture of {feature} is {image.shape[1]}x{image.shape[0]}, the policy's are {size[1]}x{size[0]}.",
            "Set the camera's width and height in the configuration to these.",
        )
    return image if image.flags.writeable else image.copy()  # torch warns about memory that it could not write


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lerobot prints while it loads; a command's output and a daemon's log are for other things."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _predicting() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # the policy's own code: whatever it raises, there is no chunk
        raise BadPrediction(f"The policy failed to predict: {type(error).__name__}: {_line(error)}.") from error


def _line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:500] or "no reason given"


@contextlib.contextmanager
def _sentence(bundle: Bundle) -> Iterator[None]:
    """Whatever lerobot, transformers and torch raise about a checkpoint, in one line."""
    try:
        yield
    except (AgentError, MemoryError):
        raise
    except Exception as error:  # foreign code on a foreign checkpoint: draccus, safetensors and lerobot share no root
        raise BadInput(
            f"lerobot cannot load {bundle.manifest.name} ({bundle.manifest.type}): {_line(error)}.",
            "Was it made with another version of lerobot, or are its packages not installed?",
        ) from error
