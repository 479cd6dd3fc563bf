"""Every number of the comparison."""

from dataclasses import dataclass, field, replace
from typing import Final

from experiments.demo_policy.recipe import Network
from experiments.demo_policy.recipe import quick as quick_demo


@dataclass(frozen=True)
class Share:
    """What one station has seen."""

    part: str  # of the table; the station is named after it
    disc: str
    others: float = 0.15  # share of the episodes of this part that name another disc


SHARES: Final = (Share("left", "red"), Share("middle", "blue"), Share("right", "red"))


@dataclass(frozen=True)
class Recipe:
    """Amounts. A local step is one optimiser step of one station; what travels is the whole action expert."""

    seed: int = 0
    network: Network = field(default_factory=Network)
    shards: int = 12  # of a thousand renders, to find named discs in, and for poses to move from
    ground_steps: int = 1_500
    ground_batch: int = 64
    ground_rate: float = 1.5e-3
    play_steps: int = 800
    play_batch: int = 32
    play_rate: float = 1.5e-3
    rounds: int = 120
    local_steps: int = 20
    batch: int = 16
    rate: float = 3e-3  # of stations whose changes are averaged; see docs/federation-proof.md
    end: float = 0.03  # share of the rate that is left in the last round
    alone_rounds: int = 10  # of those who learn by themselves, with as many steps in all as a station has, or all have
    alone_rate: float = 1e-3
    longer: bool = True  # the controls: all data at the stations' rate, each station with the steps of all three
    starts: int = 100
    curve_starts: int = 50
    curve_every: int = 20
    stack_starts: int = 30


def quick() -> Recipe:
    """Every stage within seconds; what comes out knows nothing."""
    return replace(
        Recipe(),
        network=quick_demo().network,
        ground_steps=4,
        ground_batch=8,
        play_steps=4,
        play_batch=4,
        rounds=2,
        alone_rounds=2,
        local_steps=2,
        batch=4,
        longer=False,
        starts=2,
        curve_starts=2,
        curve_every=1,
        stack_starts=1,
    )
