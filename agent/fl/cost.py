"""What learning with others costs a station, known from the size of its policy: bytes a round, and memory. A trainer
that ends for want of memory wastes a round.

Measured on x86-64 with torch 2.11 (`python -m benchmarks.federation memory --full`), at their peaks: 1.06 GB with the
demo policy at eight rows a step, 4.58 GB with 450 million parameters in fp32 at two rows. Needs neither torch nor flwr.
"""

import math
from pathlib import Path
from typing import Final

from agent.config import StationConfig
from agent.errors import BadInput
from agent.fl.layout import Shape, layout_of
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


class Cost:
    """What a run that begins from the policy in use would cost this station, from the header of its weights. Such a run
    leads to a policy of the same size."""

    def __init__(self, config: StationConfig) -> None:
        self._fixed_gb = config.federation.min_free_memory_gb
        self._library = Library(config.paths.policies, config.paths.policy_in_use)
        self._known: dict[str, dict[str, tuple[int, ...]]] = {}  # the policy in use -> shapes of its weights

    def memory_bytes(self) -> float:
        """That must be free before it joins: what federation.min_free_memory_gb says, or as much as a trainer takes."""
        if self._fixed_gb is not None:
            return self._fixed_gb * GB
        shapes = self._shapes()
        return SUPERNODE_BYTES + of_trainer(sum(map(math.prod, shapes.values()))) if shapes else UNKNOWN_BYTES

    def round_bytes(self) -> int | None:
        """That leave, and as many that come, with the default adapter; None where no policy is in use that has one."""
        shapes = self._shapes()
        try:
            return layout_of(shapes, Shape()).bytes_a_round if shapes else None
        except BadInput:
            return None

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """None where no policy is in use, or it cannot be read, which `policy list` says."""
        try:
            folder = self._library.find()
            if folder.name not in self._known:
                found = tensors(folder / POLICY / WEIGHTS)
                self._known = {folder.name: {name: each.shape for name, each in found.items()}}
            return self._known[folder.name]
        except BadInput:
            return {}
