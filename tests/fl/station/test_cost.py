"""How much memory must be free is known from the policy, before a trainer runs into its limit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.config import StationConfig
from agent.fl import cost
from agent.fl.cost import GB, UNKNOWN_BYTES, Cost
from agent.fl.layout import Shape, layout
from agent.inference.bundle import open_bundle
from agent.inference.library import Library
from tests.fl.bench import Member


@pytest.mark.parametrize(("parameters", "measured_mib"), [(1_500_000, 1015), (450_046_176, 4369)])
def test_what_was_measured_is_within_what_is_wanted_and_not_far_below(parameters: int, measured_mib: int) -> None:
    measured = measured_mib * 1024**2
    assert measured < cost.of_trainer(parameters) < 1.15 * measured


def test_a_number_in_the_configuration_holds(make_config: Callable[..., StationConfig]) -> None:
    assert Cost(make_config(federation={"min_free_memory_gb": 0.5})).memory_bytes() == 0.5 * GB


def test_without_one_it_is_what_the_policy_in_use_takes(member: Callable[..., Member], tiny_policy: Path) -> None:
    paths = member("kitchen", min_free_memory_gb=None).config.paths
    wanted = Cost(member("kitchen", min_free_memory_gb=None).config)
    assert wanted.memory_bytes() == UNKNOWN_BYTES
    assert wanted.round_bytes() is None
    Library(paths.policies, paths.policy_in_use).use("tiny")
    assert 1.4 * GB < wanted.memory_bytes() < 1.5 * GB
    assert wanted.round_bytes() == layout(open_bundle(tiny_policy), Shape()).bytes_a_round


def test_too_little_is_a_sentence_with_all_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "free_bytes", lambda: 3e9)
    assert cost.problem(450_046_176, 0, 0.5e9) == (
        "training a policy of 450 million parameters takes 4.7 GB, and 3.5 GB are free"
    )
    assert "federation.memory_max_gb is 4.0" in cost.problem(450_046_176, 4e9, 0.5e9)
    assert cost.problem(450_046_176, 5.1e9, 2e9) == ""
