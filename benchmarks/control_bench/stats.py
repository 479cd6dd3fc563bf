"""Timing of a loop from the moments at which it wrote its goals, and medians of repeated runs. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

NS_PER_S: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000

LATE_PERIODS: Final = 1.5
"""A cycle that takes longer than this many periods left the arm without a fresh goal: a missed beat."""


@dataclass(frozen=True)
class Timing:
    """How regular a loop was. Errors are |interval - nominal period|, in ms."""

    ticks: int
    rate_hz: float
    rate_deviation_pct: float  # of the mean rate from the nominal one; absolute
    error_p50_ms: float
    error_p99_ms: float
    error_max_ms: float
    late: int


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile: always a value that was measured."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, min(len(ordered), int(rank)) - 1)]


def timing(at_ns: Sequence[int], hz: float) -> Timing:
    """Timing of the loop that acted at `at_ns` (ascending, at least two) and wanted to act `hz` times a second."""
    if len(at_ns) < 2:
        raise ValueError(f"timing needs two moments or more, not {len(at_ns)}")
    period_ns = NS_PER_S / hz
    intervals = [later - earlier for earlier, later in pairwise(at_ns)]
    errors = [abs(interval - period_ns) / NS_PER_MS for interval in intervals]
    rate = len(intervals) * NS_PER_S / (at_ns[-1] - at_ns[0])
    return Timing(
        ticks=len(at_ns),
        rate_hz=rate,
        rate_deviation_pct=abs(rate - hz) / hz * 100,
        error_p50_ms=percentile(errors, 50),
        error_p99_ms=percentile(errors, 99),
        error_max_ms=max(errors),
        late=sum(interval > LATE_PERIODS * period_ns for interval in intervals),
    )


@dataclass(frozen=True)
class Spread:
    """Median of several runs, and how far they were apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """None without values."""
        return cls(statistics.median(values), min(values), max(values)) if values else None
