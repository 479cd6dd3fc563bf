"""What a stage of learning has reached, in one safetensors file: weights, optimiser, step, curve. Never a pickle."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


def save(path: Path, modules: nn.Module, optimiser: torch.optim.Optimizer, about: dict[str, Any]) -> None:
    """Replace the file at once; a kill leaves the old or the new one. `about` must be JSON."""
    tensors = {f"weights.{name}": tensor for name, tensor in modules.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}  # tied weights: twice
    save_file(copies, unfinished, {"about": json.dumps(about)})
    unfinished.rename(path)


def restore(path: Path, modules: nn.Module, optimiser: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Fill modules, and the optimiser where given; returns `about`. Raises RuntimeError when they do not fit."""
    weights: dict[str, torch.Tensor] = {}
    states: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(path, "pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()["about"])
        for key in file.keys():  # noqa: SIM118 - not a mapping
            kind, rest = key.split(".", 1)
            if kind == "weights":
                weights[rest] = file.get_tensor(key)
            elif optimiser:
                index, name = rest.split(".", 1)
                states.setdefault(int(index), {})[name] = file.get_tensor(key)
    modules.load_state_dict(weights)
    if optimiser:
        optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    return about
