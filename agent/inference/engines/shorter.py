"""SmolVLA by the shorter way of `smolvla/`, in any arithmetic and with any eyes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.inference.engine import Actions, Guidance, Image, Observation
from agent.inference.engines.arithmetic import Arithmetic
from agent.inference.engines.smolvla import weights as w
from agent.inference.engines.smolvla.denoise import Schedule, denoise
from agent.inference.engines.smolvla.prefix import assemble, embed_task, remember
from agent.inference.engines.smolvla.vision import look
from agent.inference.guidance import ModelSpace, Pull
from agent.inference.loading import Loaded
from agent.messages import JOINTS

type Eyes = Callable[[Tensor], Tensor]
"""An image of shape (3, size, size) in -1..1 to its tokens, (tokens, width of the language model)."""


def torch_eyes(policy: Any, arithmetic: Arithmetic) -> Eyes:
    """The vision tower in PyTorch."""
    vision = w.vision(policy, arithmetic)
    return lambda image: look(image, vision)


@dataclass
class Views:
    """What was last seen through each camera. Exact: features are used again only for identical pixels."""

    eyes: Eyes
    reuse: bool

    def __post_init__(self) -> None:
        self._last: dict[str, tuple[Image, Tensor]] = {}

    def see(self, camera: str, pixels: Image | None, image: Tensor) -> Tensor:
        """Tokens of `image`, which was made of `pixels`."""
        if not self.reuse or pixels is None:
            return self.eyes(image)
        before = self._last.get(camera)
        if before is not None and np.array_equal(before[0], pixels):
            return before[1]
        tokens = self.eyes(image)
        self._last[camera] = (pixels.copy(), tokens)
        return tokens


class Shorter:
    """Computes what lerobot's `SmolVLAPolicy.predict_action_chunk` computes, one observation at a time."""

    guided = True

    def __init__(
        self,
        loaded: Loaded,
        eyes: Eyes,
        prefix: w.Prefix,
        expert: w.Expert,
        *,
        reuse_vision: bool = False,
        notes: tuple[str, ...] = (),
    ) -> None:
        """The policy's weights are not looked at again; whoever wants their memory back may take them away."""
        self._loaded = loaded
        self._policy: Any = loaded.policy
        self._views = Views(eyes, reuse_vision)
        self.options = (*notes, *(("reuse_vision",) if reuse_vision else ()))
        self._prefix, self._expert = prefix, expert
        self._device = prefix.words.device
        config = self._policy.config
        self._shape = (config.chunk_size, config.max_action_dim)
        self._schedule = Schedule.of(self._policy, expert, config.num_steps)
        self._task: tuple[tuple[int, ...], Tensor] | None = None

    @classmethod
    def of(
        cls,
        loaded: Loaded,
        arithmetic: Arithmetic,
        eyes: Eyes | None = None,
        *,
        reuse_vision: bool = False,
        notes: tuple[str, ...] = (),
    ) -> Self:
        """All in one arithmetic; `eyes` may be others'."""
        policy: Any = loaded.policy
        return cls(
            loaded,
            eyes or torch_eyes(policy, arithmetic),
            w.prefix(policy, arithmetic),
            w.expert(policy, arithmetic),
            reuse_vision=reuse_vision,
            notes=notes,
        )

    @torch.inference_mode()
    def predict(
        self, observation: Observation, guidance: Guidance | None = None, noise: NDArray[np.float32] | None = None
    ) -> Actions:
        batch = self._loaded.prepare(observation)
        start = torch.randn(self._shape) if noise is None else torch.from_numpy(noise)
        pull = None
        if guidance is not None:
            pull = ModelSpace.of(self._loaded.finish, self._shape[0]).pull(guidance, *self._shape)
        chunk = self._flow(self._read(batch, self._see(batch, observation)), start.to(self._device), pull)
        return self._loaded.finish(chunk[None, :, : len(JOINTS)])

    @torch.inference_mode()
    def profile(self, observation: Observation) -> Mapping[str, float]:
        times = [time.perf_counter()]
        batch = self._loaded.prepare(observation)
        seen = self._see(batch, observation)
        times.append(time.perf_counter())
        memory = remember(self._read(batch, seen), self._prefix, self._expert)
        times.append(time.perf_counter())
        start = torch.randn(self._shape, device=self._device)
        chunk = denoise(start, memory, self._schedule, self._expert)
        self._loaded.finish(chunk[None, :, : len(JOINTS)])
        times.append(time.perf_counter())
        vision, prefix, flow = (later - earlier for earlier, later in pairwise(times))
        step = flow / len(self._schedule.times)
        return {"chunk": times[-1] - times[0], "vision": vision, "prefix": prefix, "step": step}

    def close(self) -> None:
        self._policy = None

    def _flow(self, prefix: Tensor, start: Tensor, pull: Pull | None) -> Tensor:
        """From the prefix, (length, width), and noise to a chunk in the model's space, (chunk_size, its width)."""
        memory = remember(prefix, self._prefix, self._expert)
        return denoise(start, memory, self._schedule, self._expert, pull)

    def _see(self, batch: dict[str, Tensor], observation: Observation) -> list[Tensor]:
        """The tokens of every picture there is, in the policy's order. Padding for absent cameras is left out: it is
        masked, so nothing would look at it."""
        images, masks = self._policy.prepare_images(batch)
        names = [name for name in self._policy.config.image_features if name in batch]
        names += ["" for _ in range(len(images) - len(names))]
        return [
            self._views.see(name, observation.images.get(name), image[0].to(self._device))
            for name, image, mask in zip(names, images, masks, strict=True)
            if bool(mask[0])
        ]

    def _read(self, batch: dict[str, Tensor], images: list[Tensor]) -> Tensor:
        """The prefix, (length, width). The task is embedded when it changes."""
        tokens = batch["observation.language.tokens"][0]
        spoken = tokens[batch["observation.language.attention_mask"][0].bool()]
        key = tuple(spoken.tolist())
        if self._task is None or self._task[0] != key:
            self._task = (key, embed_task(spoken.to(self._device), self._prefix))
        state = self._policy.prepare_state(batch)[0].to(self._device)
        return assemble(images, self._task[1], state, self._prefix)
