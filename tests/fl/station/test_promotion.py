"""A candidate becomes the policy in use when it is not worse, and no longer than it does well. Real policies, tiny."""

import asyncio
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.clock import SystemClock
from agent.config import StationConfig
from agent.errors import BadInput, Refused
from agent.fl.adapter import Adapter, write_adapter
from agent.fl.candidate import Job, Verdict
from agent.fl.comparison import Comparison
from agent.fl.layout import Shape, layout
from agent.fl.promotion import Promotion
from agent.fl.statistics import of_policy
from agent.inference.bundle import open_bundle
from agent.inference.library import Library
from agent.inference.training.plan import Method
from tests.fl.bench import station_config, until

type Candidate = Callable[[str, float], Adapter]


@pytest.fixture
def config(tmp_path: Path, tiny_policy: Path, drawn_episodes: Path) -> StationConfig:
    """A station that uses the tiny policy, with five episodes."""
    config = station_config(tmp_path, "kitchen")
    shutil.copytree(tiny_policy, config.paths.policies / "tiny")
    shutil.copytree(drawn_episodes, config.paths.dataset)
    config.paths.federation.mkdir(parents=True)
    Library(config.paths.policies, config.paths.policy_in_use).use("tiny")
    return config


@pytest.fixture
def candidate(config: StationConfig, tiny_policy: Path) -> Candidate:
    """What a run left: the base policy, changed by so much."""

    def make(run: str, noise: float) -> Adapter:
        base = open_bundle(tiny_policy)
        shape = Shape(Method.LORA, 4, 8, ())
        dice = np.random.default_rng(0)
        arrays = {
            name: (value + noise * dice.standard_normal(value.shape)).astype(np.float32)
            for name, value in layout(base, shape).begin(base, 0).items()
        }
        return write_adapter(
            config.paths.federation / "candidates" / run, arrays, shape, run=run, number=3, rounds=3, policy="tiny",
            policy_hash=base.hash, statistics=of_policy(base),
        )  # fmt: skip

    return make


class Station:
    """As Federation does it."""

    def __init__(self, config: StationConfig) -> None:
        self.config = config
        self.told: list[str] = []
        self.promotion = Promotion(config, SystemClock(), lambda text, data: self.told.append(text))
        self.comparison = Comparison(config.paths.federation.absolute())
        self.library = Library(config.paths.policies, config.paths.policy_in_use)

    def job(self, adapter: Adapter) -> Job:
        current = self.promotion.current()
        return Job(
            adapter=str(adapter.folder), policies=str(self.config.paths.policies), current=current and str(current),
            name=self.promotion.name_for(adapter), target=str(self.promotion.trial),
            datasets=(str(self.config.paths.dataset),), held_out=0.2, threads=1,
        )  # fmt: skip

    async def look(self) -> Any:
        adapter = self.promotion.pending()
        assert adapter is not None
        verdict = await self.comparison.run(self.job(adapter))
        assert verdict is not None
        return self.promotion.decide(adapter, verdict)


@pytest.fixture
def station(config: StationConfig) -> Station:
    return Station(config)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_candidate_that_is_not_worse_is_used_and_can_be_taken_back(
    station: Station, candidate: Candidate
) -> None:
    candidate("reach-1", 0.0)
    tried = await station.look()
    assert tried.outcome == "promoted", tried
    assert tried.before == pytest.approx(tried.after, rel=1e-4)  # nothing was learnt
    assert station.library.in_use() == "reach-1"
    entry = station.library.entry("reach-1")
    assert entry.manifest
    assert "round 3 of the federated run reach-1" in entry.manifest.description  # what `policy list` shows
    assert station.promotion.pending() is None
    assert station.promotion.rollback("by hand") == ("reach-1", "tiny")
    assert station.library.in_use() == "tiny"
    with pytest.raises(Refused, match="was not promoted here"):
        station.promotion.rollback("by hand")
    assert Station(station.config).promotion.status()["candidates"][-1]["outcome"] == "rolled back"


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_candidate_that_is_worse_is_not_kept(station: Station, candidate: Candidate) -> None:
    candidate("noise", 0.5)
    tried = await station.look()
    assert tried.outcome == "worse", tried
    assert tried.after > tried.before
    assert station.library.in_use() == "tiny"
    assert station.library.names() == ["tiny"]
    assert "off by" in station.told[-1]


async def test_a_candidate_of_a_policy_that_is_not_here_says_so(station: Station, candidate: Candidate) -> None:
    adapter = candidate("reach-1", 0.0)
    job = station.job(adapter)
    shutil.rmtree(station.config.paths.policies / "tiny")
    with pytest.raises(BadInput, match="is not here"):
        await station.comparison.run(job)
    station.promotion.failed(adapter, "no base")
    assert station.promotion.pending() is None


async def test_wanting_the_arm_ends_a_comparison_at_once_and_it_is_tried_again(
    station: Station, candidate: Candidate
) -> None:
    job = station.job(candidate("reach-1", 0.0))
    running = asyncio.create_task(station.comparison.run(job))
    await until("it runs", lambda: station.comparison.running)
    station.comparison.end()
    assert await asyncio.wait_for(running, 10) is None
    assert station.promotion.pending() is not None


def verdict(station: Station, name: str, base_hash: str, **changes: Any) -> Verdict:
    """Of a policy that was made without training."""
    made = station.promotion.trial / name
    shutil.copytree(station.config.paths.policies / "tiny", made)
    manifest = made / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "tiny"', f'"name": "{name}"'))
    (made / "manifest.sha256").write_text(f"{hashlib.sha256(manifest.read_bytes()).hexdigest()}  manifest.json\n")
    values: dict[str, Any] = {
        "folder": str(made), "hash": "0" * 12, "base": "tiny", "base_hash": base_hash, "before": 2.0, "after": 1.5,
        "rows": 32, "seconds": 1.0,
    }  # fmt: skip
    return Verdict(**(values | changes))


def promote(station: Station, candidate: Candidate, name: str = "reach-1", **changes: Any) -> Any:
    adapter = candidate(name, 0.0)
    base = station.library.entry("tiny").hash
    return station.promotion.decide(adapter, verdict(station, name, base, **changes))


def test_a_policy_that_people_judge_worse_is_taken_back_by_itself(station: Station, candidate: Candidate) -> None:
    for _ in range(10):
        assert station.promotion.judged("tiny", True) == ""
    promote(station, candidate)
    reasons = [station.promotion.judged("reach-1", False) for _ in range(5)]
    assert reasons[:4] == [""] * 4
    assert "0 of its 5 judged tasks were successes, 10 of 10 before" in reasons[4]


def test_a_policy_that_an_operator_chose_is_not_taken_back(station: Station, candidate: Candidate) -> None:
    promote(station, candidate)
    station.library.use("tiny")
    assert [station.promotion.judged("tiny", False) for _ in range(8)] == [""] * 8


def test_nothing_is_promoted_over_a_policy_of_another_kind(
    station: Station, candidate: Candidate, tiny_policy: Path
) -> None:
    other = verdict(station, "folding", "f" * 12)
    shutil.move(other.folder, station.config.paths.policies / "folding")
    station.library.use("folding")
    tried = promote(station, candidate)
    assert tried.outcome == "kept"
    assert "has nothing to do with this run" in tried.reason
    assert station.library.in_use() == "folding"
    assert "reach-1" in station.library.names()


def test_a_second_run_is_promoted_over_the_first(station: Station, candidate: Candidate) -> None:
    promote(station, candidate, "reach-1")
    assert promote(station, candidate, "reach-2").outcome == "promoted"
    assert station.promotion.rollback("by hand") == ("reach-2", "reach-1")
    assert station.promotion.rollback("by hand") == ("reach-1", "tiny")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"before": None, "after": None, "rows": 0}, "no held-out episodes"),
        ({"before": None}, "no policy is in use"),
    ],
)
def test_what_cannot_be_judged_is_kept_and_not_used(
    station: Station, candidate: Candidate, changes: dict[str, Any], reason: str
) -> None:
    tried = promote(station, candidate, **changes)
    assert tried.outcome == "kept"
    assert reason in tried.reason
    assert station.library.in_use() == "tiny"


def test_only_the_last_few_promoted_policies_stay(station: Station, candidate: Candidate) -> None:
    for number in range(7):
        promote(station, candidate, f"reach-{number}")
    names = station.library.names()
    assert "tiny" in names
    assert station.library.in_use() == "reach-6"
    assert [name for name in names if name != "tiny"] == ["reach-3", "reach-4", "reach-5", "reach-6"]


def test_a_candidate_that_was_tampered_with_is_left_alone(station: Station, candidate: Candidate) -> None:
    adapter = candidate("reach-1", 0.0)
    (adapter.folder / "adapter_model.safetensors").write_bytes(b"nothing")
    assert station.promotion.pending() is None


def test_promotion_needs_neither_torch_nor_numpy_in_the_daemon() -> None:
    code = "import sys, agent.fl.federation; print(*({'torch', 'numpy', 'flwr', 'lerobot'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == []
