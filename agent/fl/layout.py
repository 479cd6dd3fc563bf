"""Names and shapes of what travels in a round, from the header of the base policy's weights alone.

So that a daemon can say what a round will cost before it joins, and a server can begin one, without torch. A test
compares it with what peft and lerobot really train.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.errors import BadInput
from agent.fl.settings import Settings
from agent.inference.bundle import Bundle
from agent.inference.checkpoint import WEIGHTS
from agent.inference.contents import tensors
from agent.inference.training.plan import Method

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    type Arrays = dict[str, NDArray[np.float32]]

EXPERT: Final = "model.vlm_with_expert.lm_expert."
PROJECTIONS: Final = ("state_proj", "action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out")
"""Linear layers around the action expert."""

TARGETS: Final = ("q_proj", "v_proj", *PROJECTIONS)
"""lerobot's own choice for SmolVLA (`SmolVLAPolicy._get_default_peft_targets`)."""

PREFIX: Final = "base_model.model."
"""peft's, before the policy's own names."""

BYTES_ON_WIRE: Final = 2
"""fp16."""


@dataclass(frozen=True)
class Shape:
    """What is trained of a policy."""

    method: Method = Method.LORA
    rank: int = 16
    alpha: int = 8
    targets: tuple[str, ...] = ()  # last parts of module names; none: lerobot's

    @classmethod
    def of(cls, settings: Settings) -> "Shape":
        targets = tuple(name for name in settings.adapter_targets.split(",") if name)
        return cls(settings.method, settings.adapter_rank, settings.adapter_alpha, targets)

    @property
    def scale(self) -> float:
        """What an adapter adds to a weight is this times B A."""
        return self.alpha / self.rank

    @property
    def pattern(self) -> str:
        """The modules that get an adapter, as peft matches them: the whole name."""
        wanted = self.targets or TARGETS
        inside = "|".join(name for name in wanted if name not in PROJECTIONS)
        around = "|".join(name for name in wanted if name in PROJECTIONS)
        parts = [rf"{re.escape(EXPERT)}.*\.({inside})"] if inside else []
        return "|".join(parts + ([rf"model\.({around})"] if around else []))


@dataclass(frozen=True)
class Layout:
    """The arrays of an adapter, in the order of their names."""

    shape: Shape
    arrays: Mapping[str, tuple[int, ...]]
    policy_parameters: int

    @property
    def parameters(self) -> int:
        return sum(_product(shape) for shape in self.arrays.values())

    @property
    def bytes_a_round(self) -> int:
        """What a station sends in a round, and what it receives, uncompressed, but for some 600 bytes an array."""
        return self.parameters * BYTES_ON_WIRE

    def begin(self, bundle: Bundle, seed: int) -> "Arrays":
        """Before anything is learnt: with LoRA the policy as it is (B is zero, A random as peft draws it: uniform
        within 1 / sqrt(inputs)), with the action expert its own weights."""
        import numpy as np

        if self.shape.method is Method.EXPERT:
            return _weights(bundle, list(self.arrays))
        dice = np.random.default_rng(seed)
        found: Arrays = {}
        for name, shape in self.arrays.items():
            if name.endswith(".lora_A.weight"):
                bound = shape[1] ** -0.5
                found[name] = dice.uniform(-bound, bound, shape).astype(np.float32)
            else:
                found[name] = np.zeros(shape, np.float32)
        return found


def layout(bundle: Bundle, shape: Shape) -> Layout:
    """Raises BadInput for a policy without an action expert, and for targets that it does not have."""
    if bundle.manifest.type != "smolvla":
        raise BadInput(
            f"{bundle.manifest.name} is of the type {bundle.manifest.type}; only SmolVLA has adapters.",
            "Choose a SmolVLA as the base policy.",
        )
    return layout_of({name: each.shape for name, each in tensors(bundle.policy / WEIGHTS).items()}, shape)


def layout_of(weights: Mapping[str, tuple[int, ...]], shape: Shape) -> Layout:
    """Of a SmolVLA with these weights. Raises BadInput for targets that it does not have."""
    own = dict(sorted(weights.items()))
    arrays = _expert(own) if shape.method is Method.EXPERT else _lora(own, shape)
    return Layout(shape, arrays, sum(_product(each) for each in own.values()))


def _lora(own: Mapping[str, tuple[int, ...]], shape: Shape) -> dict[str, tuple[int, ...]]:
    modules = {name.removesuffix(".weight"): each for name, each in own.items() if name.endswith(".weight")}
    pattern = re.compile(shape.pattern)
    found = {name: size for name, size in modules.items() if len(size) == 2 and pattern.fullmatch(name)}
    wanted = set(shape.targets or TARGETS)
    if missing := sorted(wanted - {name.rpartition(".")[2] for name in found}):
        known = sorted({name.rpartition(".")[2] for name in modules if name.startswith(EXPERT)} & LINEAR)
        raise BadInput(
            f"The policy's action expert has no {', '.join(missing)} to be given an adapter.",
            f"It has {', '.join([*known, *PROJECTIONS])}: adapter-targets.",
        )
    arrays: dict[str, tuple[int, ...]] = {}
    for name, (out, into) in sorted(found.items()):
        arrays[f"{PREFIX}{name}.lora_A.weight"] = (shape.rank, into)
        arrays[f"{PREFIX}{name}.lora_B.weight"] = (out, shape.rank)
    return arrays


LINEAR: Final = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})


def _expert(own: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    around = tuple(f"model.{name}." for name in PROJECTIONS)
    return {name: each for name, each in own.items() if name.startswith((EXPERT, *around))}


def _weights(bundle: Bundle, names: list[str]) -> "Arrays":
    """In fp32, whatever they are stored in."""
    import torch
    from safetensors import safe_open

    with safe_open(bundle.policy / WEIGHTS, framework="pt") as file:
        return {name: file.get_tensor(name).to(torch.float32).numpy() for name in names}


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
