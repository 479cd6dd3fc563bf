"""SmolVLA's shorter way on an NVIDIA GPU, in bfloat16. A chunk is some thousand small kernels, and telling the GPU to
start each takes longer than running it, so they are recorded once as a CUDA graph and replayed.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from agent.errors import BadInput
from agent.inference.engines.arithmetic import BFloat16
from agent.inference.engines.computer import Computer
from agent.inference.engines.shorter import Shorter, torch_eyes
from agent.inference.engines.smolvla import weights as w
from agent.inference.engines.smolvla.denoise import denoise
from agent.inference.engines.smolvla.prefix import remember
from agent.inference.guidance import Pull
from agent.inference.loading import Loaded

WARM_UPS: Final = 3
"""Runs before recording, in which libraries choose their kernels; PyTorch's documentation asks for a few."""

GRAPHS_KEPT: Final = 4
"""One for each length of a task text; each holds its activations on the GPU."""


def on_cuda(loaded: Loaded, *, reuse_vision: bool = False) -> Computer:
    """Raises BadInput where there is no GPU. Moves the policy's weights there."""
    if not torch.cuda.is_available():
        raise BadInput("The engine cuda needs an NVIDIA GPU, and PyTorch finds none.", "Set policy.engine to auto.")
    policy: Any = loaded.policy
    policy.model.to("cuda")
    return Graphed.build(loaded, reuse_vision=reuse_vision)


class Recorded:
    """A function of tensors. On a GPU it is recorded at the first call with arguments of some shapes, then replayed.

    It must depend on nothing but its arguments. On a CPU it is called as it is.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._graphs: dict[tuple[torch.Size, ...], tuple[Any, tuple[Tensor, ...], Tensor]] = {}

    def __call__(self, *arguments: Tensor) -> Tensor:
        if not arguments[0].is_cuda:
            return self._function(*arguments)
        shapes = tuple(argument.shape for argument in arguments)
        if shapes not in self._graphs:
            if len(self._graphs) >= GRAPHS_KEPT:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[shapes] = self._record(arguments)
        graph, inputs, output = self._graphs[shapes]
        for place, argument in zip(inputs, arguments, strict=True):
            place.copy_(argument)
        graph.replay()
        return output.clone()

    def _record(self, arguments: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...], Tensor]:
        inputs = tuple(argument.clone() for argument in arguments)
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self._function(*inputs)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._function(*inputs)
        return graph, inputs, output


class Graphed(Shorter):
    """The shorter way in two recordings: a picture to tokens, and everything after the pictures."""

    @classmethod
    def build(cls, loaded: Loaded, *, reuse_vision: bool = False) -> "Graphed":
        """On whatever device the policy's weights are."""
        policy: Any = loaded.policy
        arithmetic = BFloat16()
        eyes = Recorded(torch_eyes(policy, arithmetic))
        made = cls(loaded, eyes, w.prefix(policy, arithmetic), w.expert(policy, arithmetic), reuse_vision=reuse_vision)
        made._recorded = Recorded(made._whole)
        return made

    _recorded: Recorded

    def _flow(self, prefix: Tensor, start: Tensor, pull: Pull | None) -> Tensor:
        """Always guided, so that one recording serves both: a weight of 0 changes nothing."""
        target = torch.zeros_like(start) if pull is None else pull.target.to(start.device)
        weights = start.new_zeros(len(start), 1) if pull is None else pull.weights.to(start.device)
        return self._recorded(prefix, start, target, weights)

    def _whole(self, prefix: Tensor, start: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        memory = remember(prefix, self._prefix, self._expert)
        return denoise(start, memory, self._schedule, self._expert, Pull(target, weights))
