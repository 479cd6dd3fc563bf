"""Whether a policy does worse than the one before it, by what people judged: successes and failures of its tasks."""

import math
from collections.abc import Sequence
from typing import Final

LEAST: Final = 5
"""Judged tasks before anything is concluded."""

SURE: Final = 0.9

UNKNOWN_RATE: Final = 0.4
"""Without a record of the one before: a new policy that fails more often than this lets nobody be patient."""


def worse(new: Sequence[bool], old: Sequence[bool]) -> str:
    """Why the new policy is worse, as a sentence; empty when that cannot be said."""
    if len(new) < LEAST:
        return ""
    told = f"{sum(new)} of its {len(new)} judged tasks were successes"
    if len(old) < LEAST:
        return told if probability_below(sum(new), len(new), UNKNOWN_RATE) > SURE else ""
    if probability_less(sum(new), len(new), sum(old), len(old)) > SURE:
        return f"{told}, {sum(old)} of {len(old)} before"
    return ""


def probability_less(new: int, new_of: int, old: int, old_of: int) -> float:
    """That the new rate of success is below the old one, given as many successes, each rate uniform before.

    The closed form for two beta distributions of Evan Miller, "Formulas for Bayesian A/B Testing".
    """
    a, b = new + 1, new_of - new + 1
    c, d = old + 1, old_of - old + 1
    return sum(
        math.exp(_log_beta(a + i, b + d) - math.log(d + i) - _log_beta(1 + i, d) - _log_beta(a, b)) for i in range(c)
    )


def probability_below(successes: int, of: int, rate: float) -> float:
    """That the rate of success is below `rate`: a beta distribution's tail, as a sum of binomials."""
    a, n = successes + 1, of + 1
    return sum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(a, n + 1))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
