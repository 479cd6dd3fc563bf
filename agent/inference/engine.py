"""The seam between the policy process and whatever computes a chunk: here, in OpenVINO, or on another machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.messages import Joints

type Image = NDArray[np.uint8]
"""RGB, shape (height, width, 3)."""

type Actions = NDArray[np.float32]
"""Shape (n, 6), in the order of `JOINTS`; degrees, gripper in percent."""


@dataclass(frozen=True)
class Observation:
    """What a policy looks at. `images` by the policy's own feature names, all of one instant."""

    joints: Joints
    images: Mapping[str, Image]
    task: str


@dataclass(frozen=True)
class Guidance:
    """The actions that are already on their way, aligned with the chunk's first action (real-time chunking)."""

    actions: Actions
    delay: int  # of these, how many will have run when the chunk arrives
    horizon: int  # from here on the chunk is free


@dataclass(frozen=True)
class Traits:
    """What an engine says about itself."""

    name: str
    place: str  # "here", or the address of the machine
    chunk_size: int
    period_ns: int  # between two actions
    cameras: Mapping[str, str]  # view (OBS_IMAGE_1) -> the policy's own feature name
    guided: bool  # whether it takes guidance
    deviation: float  # from lerobot's own prediction; the largest of all joints, degrees or percent
    options: tuple[str, ...] = ()  # what makes it differ from the reference on purpose


class Engine(Protocol):
    """Computes chunks, one at a time. Loaded, checked and warm when it is handed over."""

    @property
    def traits(self) -> Traits: ...

    def predict(
        self, observation: Observation, guidance: Guidance | None = None, noise: NDArray[np.float32] | None = None
    ) -> Actions:
        """A chunk, shape (chunk_size, 6). `noise` has shape (chunk_size, action dimension of the model); None: random.

        Raises BadPrediction when the result cannot be used, Transient when a remote engine does not answer.
        """
        ...

    def close(self) -> None:
        """Free what it holds. It is not used afterwards."""
        ...
