"""What a station tells the trainer that runs for it: a JSON file, written anew before each message is worked on.

The trainer is a process that Flower starts, maybe as another user. All that it may know of the station is in here; the
environment variable names the file. Without it (in simulation) there is no station.
"""

import os
from pathlib import Path
from typing import Final

import msgspec

from agent.errors import BadInput

VARIABLE: Final = "SO_AGENT_BRIEF"


class Privacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a station insists on, whatever the run asks for: the stricter of both holds. See privacy.py."""

    clip: float  # the longest update that leaves, L2 norm
    noise: float  # standard deviation of the noise, as a multiple of `clip`
    delta: float = 1e-5
    max_epsilon: float | None = None  # spent over all runs of this station: after it, no training leaves it


class Brief(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Paths are absolute. Only `scratch`, `candidates`, `progress` and `ledger` can be written by the trainer."""

    station: str
    datasets: tuple[str, ...]  # folders of LeRobotDatasets that may be learnt from: those with consent
    held_out: float  # share of each dataset's episodes that is only looked at
    policies: str  # folder of bundles; the run names the one that it starts from by its hash
    flag: str  # when this file exists: stop at the next step and reply with what there is
    progress: str  # the trainer writes `Progress` here, whole, after a step, at most twice a second
    candidates: str  # RUN/ appears here when a run is finished: an adapter as adapter.py describes it, whole
    scratch: str  # caches and whatever else; emptied between rounds
    threads: int  # for torch
    device: str = "cpu"  # or "cuda"
    ledger: str = ""  # file that outlives everything: what privacy was spent; without one, no run with noise is joined
    privacy: Privacy | None = None
    share_statistics: bool = False  # count, mean and spread of the joints may leave, besides adapters and metrics
    memory_max_bytes: int = 0  # of everything federated here; 0: no limit


class Progress(msgspec.Struct, frozen=True):
    """What the trainer does, for `so-agent fl status`."""

    run: str
    round: int
    rounds: int
    doing: str  # "training", "evaluating", "declined: REASON"
    step: int
    steps: int
    loss: float | None = None


def read_brief() -> Brief | None:
    """The brief of this process; None when no station has given it one. Raises BadInput."""
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Brief)
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(f"Cannot read the brief of this station {path}: {error}.", "Restart the agent.") from error


def replace(path: Path, message: msgspec.Struct) -> None:
    """Write a file that another process may read at any moment: it sees the old one or the new one."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(msgspec.json.encode(message) + b"\n")
    new.replace(path)
