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
    ground_steps: int = 500
    ground_batch: int = 64
    ground_rate: float = 1.5e-3
    play_steps: int = 500
    play_batch: int = 32
    play_rate: float = 1.5e-3
    rounds: int = 20
    local_steps: int = 40
    batch: int = 32
    rate: float = 1e-3
    decay: float = 0.9
    longer: bool = True  # each station by itself once more, with as many steps as all three have together
    starts: int = 100
    curve_starts: int = 50
    curve_every: int = 4
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
        local_steps=2,
        batch=4,
        longer=False,
        starts=2,
        curve_starts=2,
        curve_every=1,
        stack_starts=1,
    )
