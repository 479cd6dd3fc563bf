"""lerobot's own prediction, for every policy that has `predict_action_chunk`. What all others are measured by."""

import inspect
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.inference.engine import Actions, Guidance, Observation
from agent.inference.guidance import MAX_WEIGHT, SCHEDULE, ModelSpace
from agent.inference.loading import Loaded


class Reference:
    def __init__(self, loaded: Loaded) -> None:
        """Flow policies that lerobot knows how to guide are set up for it."""
        self._loaded = loaded
        self._policy: Any = loaded.policy
        self._takes_noise = "noise" in inspect.signature(self._policy.predict_action_chunk).parameters
        self.guided = bool(self._policy.supports_rtc())
        self.options: tuple[str, ...] = ()
        if self.guided:
            from lerobot.configs import RTCAttentionSchedule
            from lerobot.policies.rtc import RTCConfig

            self._policy.config.rtc_config = RTCConfig(
                prefix_attention_schedule=RTCAttentionSchedule[SCHEDULE.upper()], max_guidance_weight=MAX_WEIGHT
            )
            self._policy.init_rtc_processor()

    def predict(
        self, observation: Observation, guidance: Guidance | None = None, noise: NDArray[np.float32] | None = None
    ) -> Actions:
        with torch.no_grad():  # not inference_mode: lerobot's guidance asks autograd
            batch = self._loaded.prepare(observation)
            chunk = self._policy.predict_action_chunk(batch, **self._noise(noise), **self._guidance(guidance))
            return self._loaded.finish(chunk)

    def profile(self, observation: Observation) -> Mapping[str, float]:
        """Stages of SmolVLA; of other policies the whole."""
        if self._policy.config.type != "smolvla":
            begin = time.perf_counter()
            self.predict(observation)
            return {"chunk": time.perf_counter() - begin}
        flow = self._policy.model
        seconds = dict.fromkeys(("vision", "prefix", "step"), 0.0)
        vision = _Timed(flow.vlm_with_expert, "embed_image", seconds, "vision")
        with vision, _Timed(flow, "denoise_step", seconds, "step"):
            begin = time.perf_counter()
            self.predict(observation)
            whole = time.perf_counter() - begin
        seconds["prefix"] = whole - seconds["vision"] - seconds["step"]
        seconds["step"] /= self._policy.config.num_steps
        return {"chunk": whole, **seconds}

    def close(self) -> None:
        self._policy = None

    def _noise(self, noise: NDArray[np.float32] | None) -> dict[str, Tensor]:
        return {} if noise is None or not self._takes_noise else {"noise": torch.from_numpy(noise)[None]}

    def _guidance(self, guidance: Guidance | None) -> dict[str, Any]:
        if guidance is None or not self.guided:
            return {}
        space = ModelSpace.of(self._loaded.finish, self._policy.config.chunk_size)
        return {
            "prev_chunk_left_over": space.enter(guidance.actions)[None],
            "inference_delay": guidance.delay,
            "execution_horizon": guidance.horizon,
        }


class _Timed:
    """Adds up the seconds spent in one method of one object, and takes itself away afterwards."""

    def __init__(self, owner: Any, method: str, into: dict[str, float], stage: str) -> None:
        self._owner, self._method, self._into, self._stage = owner, method, into, stage

    def __enter__(self) -> None:
        inner = getattr(self._owner, self._method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self._into[self._stage] += time.perf_counter() - begin

        setattr(self._owner, self._method, timed)

    def __exit__(self, *_: object) -> None:
        delattr(self._owner, self._method)
