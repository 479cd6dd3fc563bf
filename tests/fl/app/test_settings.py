"""Every number of a run can be overridden, within limits that hold on stations, too."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from agent.errors import BadInput
from agent.fl.settings import defaults, read_settings
from tests.fl.app.conftest import settings, values

REPOSITORY = Path(__file__).resolve().parents[3]


def test_flower_knows_every_setting_with_its_default() -> None:
    app = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["config"] == defaults()
    assert all(type(app["config"][name]) is type(value) for name, value in defaults().items())


def test_every_setting_is_explained() -> None:
    text = (REPOSITORY / "docs" / "federation-app.md").read_text()
    missing = [name for name in defaults() if f"`{name}`" not in text]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num-server-rounds", 0),
        ("adapter-rank", 1000),
        ("local-steps", 10**9),
        ("learning-rate", 0.0),
        ("learning-rate", float("nan")),
        ("strategy", "fedmagic"),
        ("compression", "zip"),
        ("method", "full"),
        ("adapter-targets", ".*(a+)+"),
        ("name", "../elsewhere"),
        ("trim", 0.5),
        ("seed", -1),
        ("anything-else", 1),
    ],
)
def test_what_is_not_possible_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(BadInput, match=f"{name}|unknown"):
        read_settings(values() | {name: value})


def test_noise_without_a_clip_is_refused() -> None:
    with pytest.raises(BadInput, match="protects nothing"):
        settings(privacy_noise=1.0)


def test_numbers_may_be_given_as_people_type_them() -> None:
    """`--run-config "learning-rate=1"` is an integer to Flower."""
    assert read_settings(values() | {"learning-rate": 1}).learning_rate == 1.0
    assert settings(local_steps=7).local_steps == 7


def test_the_rate_falls_from_round_to_round() -> None:
    falling = settings(learning_rate=0.1, learning_rate_decay=0.5)
    assert [falling.rate(number) for number in (1, 2, 3)] == [0.1, 0.05, 0.025]


def test_less_than_a_batch_is_not_worth_sending() -> None:
    assert settings(batch_size=6).enough == 6
    assert settings(min_examples=100).enough == 100
