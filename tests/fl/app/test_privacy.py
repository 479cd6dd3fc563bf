"""The budget that is reported is the one that is spent; noise is what it should be, and nobody else can draw it."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from agent.errors import Fatal
from agent.fl.brief import Privacy
from agent.fl.privacy import Ledger, agreed, epsilon, mu_of, protect, true_dice
from tests.fl.app.conftest import settings


@pytest.mark.parametrize(
    ("mu", "delta", "known"),
    [
        # The Gaussian mechanism with sensitivity 1 and sigma 1: Balle and Wang 2018 (arXiv:1805.06530), dp-accounting.
        (1.0, 1e-5, 4.377178),
        # sigma 2
        (0.5, 1e-5, 1.993091),
    ],
)
def test_known_values(mu: float, delta: float, known: float) -> None:
    assert epsilon(mu, delta) == pytest.approx(known, abs=2e-6)


@pytest.mark.parametrize("mu", [0.1, 0.7, 2.0, 8.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_it_is_the_smallest_epsilon_of_two_gaussians(mu: float, delta: float) -> None:
    """By its definition, integrated: delta(e) is what one density has above e^e times the other."""
    found = epsilon(mu, delta)
    begin = found / mu + mu / 2  # where the densities' ratio is e^found
    above, _ = quad(lambda x: norm.pdf(x, mu) - math.exp(found) * norm.pdf(x), begin, begin + 12, epsabs=1e-14)
    assert above == pytest.approx(delta, rel=1e-4)


def test_rounds_compose_exactly() -> None:
    """16 messages with a standard deviation of 4 tell as much as one with 1."""
    assert epsilon(math.hypot(*[0.25] * 16), 1e-5) == pytest.approx(epsilon(1.0, 1e-5))


@pytest.mark.parametrize("mu", [1.0, 3.0, 10.0])
def test_it_is_below_what_renyi_divergence_gives(mu: float) -> None:
    """Mironov 2017: RDP(a) = a mu^2 / 2, converted as by Canonne, Kamath and Steinke 2020."""
    delta = 1e-5
    bound = min(
        a * mu**2 / 2 + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a in np.linspace(1.01, 200, 20_000)
    )
    assert epsilon(mu, delta) <= bound <= epsilon(mu, delta) * 1.3 + 0.5


def test_no_noise_is_no_privacy_and_much_use_is_little() -> None:
    assert epsilon(0.0, 1e-5) == 0.0
    assert epsilon(200.0, 1e-5) == pytest.approx(200**2 / 2 + 200 * 4.26, rel=0.01)
    assert epsilon(1e6, 1e-5) == math.inf


def test_a_change_is_never_longer_than_the_clip_and_a_short_one_is_left() -> None:
    dice = np.random.default_rng(0)
    change = {"a": dice.standard_normal((30, 40)).astype(np.float32), "b": np.ones(5, np.float32)}
    shortened = protect(change, 0.5, 0.0, dice)
    assert math.sqrt(sum(float((value**2).sum()) for value in shortened.values())) == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(shortened["a"] / shortened["b"][0], change["a"], rtol=1e-5)
    same = protect(change, 1e3, 0.0, dice)
    np.testing.assert_array_equal(same["a"], change["a"])
    nothing = protect({"a": np.zeros(4, np.float32)}, 1.0, 0.0, dice)
    assert not nothing["a"].any()


def test_noise_has_the_standard_deviation_that_is_accounted_for() -> None:
    zero = {"a": np.zeros((200, 200), np.float32)}
    noisy = protect(zero, clip=0.3, noise=2.0, dice=np.random.default_rng(1))["a"]
    assert noisy.std() == pytest.approx(0.6, rel=0.02)
    assert abs(noisy.mean()) < 0.01
    # Two changes are at most 2 * 0.3 apart: 0.6 / 0.6 standard deviations.
    assert mu_of(2.0) == 1.0


def test_a_station_draws_what_nobody_can_draw_again() -> None:
    """A run's seed comes from the server."""
    np.random.seed(0)
    first = true_dice().standard_normal(8)
    np.random.seed(0)
    assert not np.array_equal(first, true_dice().standard_normal(8))


def test_the_stricter_of_run_and_station_holds() -> None:
    asks = settings(privacy_clip=1.0, privacy_noise=0.5)
    mine = Privacy(clip=0.2, noise=0.1, delta=1e-6, max_epsilon=8.0)
    assert agreed(settings(), None) is None
    assert agreed(settings(privacy_clip=1.0), None) is None  # shortened, but nothing is promised
    assert agreed(asks, None) == Privacy(1.0, 0.5, 1e-5)
    assert agreed(settings(), mine) == mine
    assert agreed(asks, mine) == Privacy(0.2, 0.5, 1e-6, 8.0)


def test_the_ledger_outlives_runs(tmp_path: Path) -> None:
    path = tmp_path / "federation" / "ledger.json"
    assert Ledger(path).mu() == 0.0
    Ledger(path).spend("one", 1, 0.3)
    Ledger(path).spend("two", 1, 0.4)
    assert Ledger(path).mu() == pytest.approx(0.5)
    assert [(each.run, each.round) for each in Ledger(path).releases()] == [("one", 1), ("two", 1)]
    path.write_text("{")
    with pytest.raises(Fatal, match="what privacy was spent"):
        Ledger(path).mu()
