"""How much memory a trainer takes, from the size of its policy; a process that ends for want of it wastes a round.

Measured on x86-64 with torch 2.11 (`python -m benchmarks.federation memory --full`), at their peaks: 1.06 GB with the
demo policy at eight rows a step, 4.58 GB with 450 million parameters in fp32 at two rows. Needs neither torch nor flwr.
"""

import math
from pathlib import Path
from typing import Final

from agent.config import StationConfig
from agent.errors import BadInput
from agent.inference.bundle import POLICY
from agent.inference.checkpoint import WEIGHTS
from agent.inference.contents import tensors
from agent.inference.library import Library

GB: Final = 1e9

IMPORTS_BYTES: Final = 1.1e9
"""lerobot, torch and flwr, and the activations of a small batch."""

BYTES_A_PARAMETER: Final = 8
"""fp32, and as much again while the weights are read."""

SUPERNODE_BYTES: Final = 0.3e9
"""SuperNode and executor."""

UNKNOWN_BYTES: Final = 3e9
"""Wanted where no policy is in use, so that nobody knows how large the run's will be."""


def of_trainer(parameters: int) -> float:
    """Bytes at its peak."""
    return IMPORTS_BYTES + BYTES_A_PARAMETER * parameters


def problem(parameters: int, limit_bytes: float, own_bytes: float) -> str:
    """Why a policy of this size cannot be trained here and now, in a process that has `own_bytes` already; empty when
    it can. `limit_bytes`: all that may be federated here; 0: no limit."""
    needed = of_trainer(parameters)
    what = f"training a policy of {parameters / 1e6:.0f} million parameters takes {needed / GB:.1f} GB"
    if 0 < limit_bytes < needed + SUPERNODE_BYTES:
        return f"{what}, and SuperNode 0.3; federation.memory_max_gb is {limit_bytes / GB:.1f}"
    free = free_bytes() + own_bytes
    return f"{what}, and {free / GB:.1f} GB are free" if free < needed else ""


def free_bytes() -> float:
    """That a new process could have on this machine."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0.0


class Wanted:
    """What must be free before this station joins: what federation.min_free_memory_gb says, or as much as a trainer of
    the policy in use takes, which is as large as any that a run would replace it by."""

    def __init__(self, config: StationConfig) -> None:
        self._fixed_gb = config.federation.min_free_memory_gb
        self._library = Library(config.paths.policies, config.paths.policy_in_use)
        self._known: tuple[str, float] | None = None

    def bytes(self) -> float:
        if self._fixed_gb is not None:
            return self._fixed_gb * GB
        try:
            folder = self._library.find()
            if self._known is None or self._known[0] != folder.name:
                self._known = folder.name, SUPERNODE_BYTES + of_trainer(_parameters(folder))
        except BadInput:  # none is in use, or it cannot be read, which `policy list` says
            return UNKNOWN_BYTES
        return self._known[1]


def _parameters(folder: Path) -> int:
    return sum(math.prod(each.shape) for each in tensors(folder / POLICY / WEIGHTS).values())
