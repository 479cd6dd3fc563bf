"""What came of all starts: shares with intervals, by situation, and what is between two policies."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.evaluate import interval
from experiments.federation.evaluate import Start
from experiments.federation.situations import PARTS, part

RESAMPLES: Final = 10_000
CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class Results:
    """All starts of one policy, in the order of their numbers."""

    starts: tuple[Start, ...]

    @property
    def count(self) -> int:
        return len(self.starts)

    @property
    def hits(self) -> int:
        return sum(each.success for each in self.starts)

    @property
    def share(self) -> float:
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        return interval(self.hits, self.count)

    @property
    def others(self) -> int:
        """Starts that ended at a disc that was not named."""
        return sum(each.touched not in (None, each.named) for each in self.starts)

    @property
    def chosen(self) -> int:
        """Starts in which the first disc that the fingertip rested at was the named one."""
        return sum(each.chosen == each.named for each in self.starts)

    @property
    def median_cm(self) -> float:
        return float(np.median([each.miss_m for each in self.starts])) * 100

    def situations(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(part, disc) -> successes, of how many."""
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for where in PARTS:
            for disc in sorted({each.named for each in self.starts}):
                here = [each.success for each in self.starts if (part(each.bearing_deg), each.named) == (where, disc)]
                found[where, disc] = sum(here), len(here)
        return found

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".tmp")
        unfinished.write_text(json.dumps([asdict(each) for each in self.starts], indent=0), encoding="utf-8")
        unfinished.rename(file)


def load(file: Path) -> Results:
    return Results(tuple(Start(**each) for each in json.loads(file.read_text(encoding="utf-8"))))


@dataclass(frozen=True)
class Comparison:
    """Of one policy with another on the same starts; intervals by resampling the starts."""

    points: float  # share of one minus share of the other, in percentage points
    points_interval: tuple[float, float]
    ratio: float  # share of one by share of the other; not a number where the other never succeeds
    ratio_interval: tuple[float, float]


def compare(one: Results, other: Results, seed: int = 0) -> Comparison:
    """Raises ValueError when they are not of the same starts."""
    if [each.number for each in one.starts] != [each.number for each in other.starts]:
        raise ValueError("Two policies can only be compared on the same starts.")
    ours, theirs = (np.array([each.success for each in results.starts], float) for results in (one, other))
    drawn = np.random.default_rng(seed).integers(0, one.count, (RESAMPLES, one.count))
    means = ours[drawn].mean(axis=1), theirs[drawn].mean(axis=1)
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = (100 * np.quantile(means[0] - means[1], tails)).tolist()
    some = means[1] > 0
    ratios = np.quantile(means[0][some] / means[1][some], tails).tolist() if some.any() else [np.nan, np.nan]
    return Comparison(
        100 * (one.share - other.share),
        (low, high),
        one.share / other.share if other.hits else float("nan"),
        (ratios[0], ratios[1]),
    )
