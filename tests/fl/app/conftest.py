"""A tiny policy and a station's episodes, made once for all tests of the app; messages as Flower delivers them."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from agent.config import StationConfig
from agent.fl.brief import VARIABLE, Brief
from agent.fl.exchange import VERSION, Terms
from agent.fl.layout import Layout, Shape, layout
from agent.fl.settings import Settings, defaults, read_settings
from agent.fl.statistics import of_policy
from agent.inference.bundle import Bundle
from agent.inference.importer import Wish, import_checkpoint
from agent.robot.recording.repair import repair
from tests.recording.made import journal

EPISODES = 6
ROWS = 12
CHUNK = 6
HELD_OUT = 0.34  # one of three


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads make them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A SmolVLA of 0.2 million parameters that knows nothing. Not to be changed."""
    from tests.inference.checkpoints import smolvla

    checkpoint = smolvla(tmp_path_factory.mktemp("checkpoints") / "reach", chunk_size=CHUNK)
    return import_checkpoint(checkpoint, tmp_path_factory.mktemp("policies"), Wish("reach", tasks=("reach",)))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes of two tasks, as a station records them. Not to be changed; copy it."""
    folder = tmp_path_factory.mktemp("station")
    arm = {"model": "so101", "follower": {"port": "/dev/none", "id": "follower"}, "calibration_dir": str(folder)}
    config = StationConfig(station="test", state_dir=folder, robot=arm)  # type: ignore[arg-type]
    for number in range(EPISODES):
        journal(config.paths.journal, ROWS, first=1 + 3 * number, number=number, task=f"task {number % 2}")
    repair(config)
    return config.paths.dataset


@pytest.fixture(scope="session")
def plan(base: Bundle) -> Layout:
    return layout(base, Shape(rank=4))


def values(**changes: Any) -> dict[str, Any]:
    """A run's configuration, as Flower hands it to the app."""
    named = {name.replace("_", "-"): value for name, value in changes.items()}
    assert named.keys() <= defaults().keys()
    return {**defaults(), "adapter-rank": 4, "local-steps": 3, "batch-size": 4, "learning-rate": 3e-3, **named}


def settings(**changes: Any) -> Settings:
    return read_settings(values(**changes))


@dataclass
class Station:
    """What a station's agent gives to its trainer, and a Flower node on top of it."""

    folder: Path
    brief: Brief
    base: Bundle
    context: Context

    @property
    def flag(self) -> Path:
        return Path(self.brief.flag)

    def write(self, **changes: Any) -> None:
        self.brief = msgspec.structs.replace(self.brief, **changes)
        (self.folder / "brief.json").write_bytes(msgspec.json.encode(self.brief))

    def configure(self, **changes: Any) -> None:
        self.context.run_config = values(**changes)

    def terms(self, **changes: Any) -> Terms:
        own = Terms(VERSION, "federated", 1, 3, False, "reach", self.base.hash, of_policy(self.base))
        return msgspec.structs.replace(own, **changes)


@pytest.fixture
def station(tmp_path: Path, base: Bundle, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Station:
    folder = tmp_path / "station"
    for name in ("candidates", "scratch"):
        (folder / name).mkdir(parents=True)
    brief = Brief(
        station="test",
        datasets=(str(dataset),),
        held_out=HELD_OUT,
        policies=str(base.folder.parent),
        flag=str(folder / "needed"),
        progress=str(folder / "progress.json"),
        candidates=str(folder / "candidates"),
        scratch=str(folder / "scratch"),
        threads=1,
        ledger=str(folder / "ledger.json"),
    )
    monkeypatch.setenv(VARIABLE, str(folder / "brief.json"))
    context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config=values())
    made = Station(folder, brief, base, context)
    made.write()
    return made


@pytest.fixture(autouse=True)
def _flower_process() -> None:
    """Messages can be made only in a process that Flower has told which run it is for."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def asked(kind: str, content: RecordDict | None = None) -> Message:
    """A message as a node receives it."""
    return Message(content or RecordDict(), 7, kind)


type Ask = Callable[..., Message]
