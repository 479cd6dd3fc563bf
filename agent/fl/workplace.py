"""Where a trainer works: on a station, by its brief; or in a simulation, with one part of a dataset."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from agent.errors import BadInput
from agent.fl import cost
from agent.fl.base import find_base, find_by_hash
from agent.fl.brief import Brief, Privacy, Progress, read_brief, replace
from agent.fl.dataset import Episodes, divide, divide_part
from agent.fl.exchange import Decline, Declined
from agent.fl.partition import partitioner
from agent.fl.settings import Division, Settings
from agent.inference.bundle import Bundle
from agent.robot.recording.index import DatasetIndex

PARTITION: Final = "partition-id"
PARTITIONS: Final = "num-partitions"
"""Flower's names in the node configuration of simulated nodes."""


@dataclass(frozen=True)
class Portion:
    """Episodes of one dataset."""

    dataset: Path
    episodes: Episodes


@dataclass(frozen=True)
class Workplace:
    """What of a station, or of its stand-in, a trainer may use."""

    number: int  # enters the seeds: which rows, in which order
    portions: tuple[Portion, ...]
    threads: int
    device: str
    simulated: bool
    policies: Path | None = None  # None: where the server's own are
    flag: Path | None = None
    progress: Path | None = None
    candidates: Path | None = None
    ledger: Path | None = None
    privacy: Privacy | None = None
    share_statistics: bool = True
    memory_max_bytes: int = 0  # 0: no limit

    @property
    def wanted_elsewhere(self) -> bool:
        """The arm is needed: stop."""
        return self.flag is not None and self.flag.exists()

    def base(self, settings: Settings, digest: str) -> Bundle:
        """The policy that the run starts from. Raises Declined when it is not here."""
        found = find_by_hash(self.policies, digest) if self.policies else find_base(settings.policy)
        if found is None or found.hash != digest:
            raise Declined(
                Decline.NO_POLICY, f"The policy {settings.policy} ({digest}) is not here: import it on this station."
            )
        return found

    def has_memory_for(self, parameters: int) -> None:
        """Raises Declined where there is too little to train a policy of this size. A simulation sees for itself."""
        if self.simulated:
            return
        own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if problem := cost.problem(parameters, self.memory_max_bytes, own):
            raise Declined(Decline.NO_MEMORY, f"Too little memory: {problem}.")

    def counts(self) -> tuple[int, int, int]:
        """Rows and episodes to learn from, and held-out episodes."""
        rows = 0
        for part in self.portions:
            frames = {each.episode: each.frames for each in DatasetIndex(part.dataset).list()}
            rows += sum(frames[number] for number in part.episodes.learnt)
        learnt = sum(len(part.episodes.learnt) for part in self.portions)
        return rows, learnt, sum(len(part.episodes.held_out) for part in self.portions)

    def tell(self, progress: Progress) -> None:
        if self.progress:
            replace(self.progress, progress)


def workplace(settings: Settings, node: Mapping[str, Any]) -> Workplace:
    """Of this process. Raises Declined where there is nothing to learn from, BadInput for a brief that is none."""
    brief = read_brief()
    if brief is not None:
        return _station(brief)
    if PARTITION not in node:
        raise Declined(Decline.NO_DATA, "This node is neither a station of so-agent nor a simulated one.")
    return _simulated(settings, int(node[PARTITION]), int(node[PARTITIONS]))


def _station(brief: Brief) -> Workplace:
    os.environ.setdefault("HF_DATASETS_CACHE", str(Path(brief.scratch) / "tables"))
    return Workplace(
        number=int.from_bytes(sha256(brief.station.encode()).digest()[:4]) >> 1,
        portions=tuple(Portion(Path(folder), divide(Path(folder), brief.held_out)) for folder in brief.datasets),
        threads=brief.threads,
        device=brief.device,
        simulated=False,
        policies=Path(brief.policies),
        flag=Path(brief.flag),
        progress=Path(brief.progress),
        candidates=Path(brief.candidates),
        ledger=Path(brief.ledger) if brief.ledger else None,
        privacy=brief.privacy,
        share_statistics=brief.share_statistics,
        memory_max_bytes=brief.memory_max_bytes,
    )


def _simulated(settings: Settings, number: int, count: int) -> Workplace:
    from agent.fl.synthetic import CACHE, drawn

    os.environ.setdefault("HF_DATASETS_CACHE", str(CACHE / "tables"))
    dataset = Path(settings.dataset) if settings.dataset else drawn()
    if settings.partition is Division.STATIONS:
        own = _own(dataset, number)
        return Workplace(number, (Portion(own, divide(own, settings.held_out)),), settings.threads, _device(), True)
    parts = partitioner(settings.partition, count, settings.partition_alpha, settings.seed)
    parts.dataset = dataset
    try:
        episodes = parts.episodes(number)
    except BadInput as error:
        raise Declined(Decline.NO_DATA, str(error)) from error
    portion = Portion(dataset, divide_part(episodes, settings.held_out))
    return Workplace(number, (portion,), settings.threads, _device(), simulated=True)


def _own(folder: Path, number: int) -> Path:
    """The dataset of one simulated station, where each has its own."""
    found = sorted(path for path in folder.iterdir() if (path / "meta").is_dir())
    if number >= len(found):
        raise Declined(Decline.NO_DATA, f"There are {len(found)} datasets in {folder}, none for station {number}.")
    return found[number]


def _device() -> str:
    """A simulated station computes where torch does; Ray shows it the GPUs that are its share."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
