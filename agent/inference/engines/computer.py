"""What an engine is made of: something that computes, and the frame around it that trusts nothing it gives."""

from collections.abc import Mapping
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.errors import BadPrediction
from agent.inference.engine import Actions, Guidance, Observation, Traits
from agent.messages import JOINTS

HERE: Final = "here"
NS_PER_S: Final = 1_000_000_000


class Computer(Protocol):
    """Computes chunks in one particular way, for one policy."""

    @property
    def guided(self) -> bool:
        """Whether it takes guidance."""
        ...

    @property
    def options(self) -> tuple[str, ...]:
        """What makes it differ from the reference on purpose."""
        ...

    def predict(
        self, observation: Observation, guidance: Guidance | None = None, noise: NDArray[np.float32] | None = None
    ) -> Actions: ...

    def profile(self, observation: Observation) -> Mapping[str, float]:
        """Seconds of one chunk and of its stages: `chunk`, `vision`, `prefix` and one `step`. Only `chunk` where the
        stages cannot be told apart."""
        ...

    def close(self) -> None: ...


class Checked:
    """An engine: a computer that was compared with the reference, and whose every chunk is looked at."""

    def __init__(self, computer: Computer, traits: Traits) -> None:
        self._computer = computer
        self._traits = traits

    @property
    def traits(self) -> Traits:
        return self._traits

    def predict(
        self, observation: Observation, guidance: Guidance | None = None, noise: NDArray[np.float32] | None = None
    ) -> Actions:
        """A chunk, shape (chunk_size, 6), finite. Raises BadPrediction when the policy gives anything else."""
        actions = self._computer.predict(observation, guidance if self._traits.guided else None, noise)
        return usable(actions, self._traits.chunk_size)

    def profile(self, observation: Observation) -> Mapping[str, float]:
        return self._computer.profile(observation)

    def close(self) -> None:
        self._computer.close()


def usable(actions: Actions, chunk_size: int) -> Actions:
    """`actions`, if they are a chunk. Raises BadPrediction."""
    wanted = (chunk_size, len(JOINTS))
    if actions.shape != wanted:
        raise BadPrediction(
            f"The policy gave an array of shape {actions.shape}; a chunk has shape {wanted}.",
            "The bundle's manifest and its policy contradict each other; import it again.",
        )
    bad = np.argwhere(~np.isfinite(actions))
    if len(bad):
        row, joint = bad[0]
        raise BadPrediction(
            f"The policy gave {actions[row, joint]} for {JOINTS[joint]} in action {row}, "
            f"and {len(bad)} of {actions.size} values in all that are no numbers.",
            "Its weights or statistics are broken, or its input was far from anything it has seen.",
        )
    return actions.astype(np.float32, copy=False)
