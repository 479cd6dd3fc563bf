"""What stations and server say to each other in a round. Nothing but adapters, counts and metrics leaves a station.

train       server -> station   ArrayRecord `arrays`: the global adapter, fp16
                                ConfigRecord `config`: `Terms`
            station -> server   ArrayRecord `arrays`: the *change* that training made, encoded (compression.py)
                                MetricRecord `metrics`: those of `TRAINED`
evaluate    server -> station   as above
            station -> server   MetricRecord `metrics`: those of `JUDGED`
query       station -> server   MetricRecord `metrics`: those of `PRESENT`
query.statistics                MetricRecord `metrics`: count, and sums of the joints (statistics.py); with consent only

With noise for privacy (privacy.py), losses and seconds are left out, and a station evaluates for itself only.

A station that does not take part in a round replies with an Error whose code is one of `Decline`; the round goes on
without it. After the last round the adapter is sent to every node (`final` in the terms), again and again for
`deliver-s` seconds to those that were away, and each keeps it in `brief.candidates`.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final

import msgspec

from agent.errors import BadInput

VERSION: Final = 1

ARRAYS: Final = "arrays"
CONFIG: Final = "config"
METRICS: Final = "metrics"

WEIGHT: Final = "num-examples"

TRAINED: Final = (WEIGHT, "steps", "asked", "train-loss", "preempted", "seconds", "epsilon")
"""Rows really used; steps done, and asked for; mean loss; 1 when it stopped early; how long; privacy spent, or 0."""

JUDGED: Final = (WEIGHT, "held-out-loss", "seconds")
"""Rows looked at, and their mean loss."""

PRESENT: Final = ("ready", "rows", "episodes", "held-out-episodes")

STATISTIC: Final = "statistics."


class Decline(IntEnum):
    """Codes of error replies; Flower's own are below 1000."""

    BUSY = 1001  # the arm is needed, and too little was done to be worth sending
    NO_POLICY = 1002  # the base policy is not in this station's library
    NO_DATA = 1003  # no dataset with consent fits, or no episode is left to learn from
    NOT_AGREED = 1004  # beyond what this station's brief, or settings.py, allow
    FAILED = 1005  # the training itself went wrong: a loss that is no number
    SPENT = 1006  # this station's privacy budget does not last for another round
    OTHER_VERSION = 1007  # server and station speak different versions of this exchange
    NO_MEMORY = 1008  # the policy is too large for what this station gives

    @property
    def sentence(self) -> str:
        """All that the server is told. The rest, with names of folders and datasets, is for the station's people."""
        return SENTENCES[self]


SENTENCES: Final = {
    Decline.BUSY: "The arm is needed.",
    Decline.NO_POLICY: "The base policy is not in this station's library.",
    Decline.NO_DATA: "There is nothing here that this run may learn from.",
    Decline.NOT_AGREED: "This station does not agree to these terms, or they make no sense to it.",
    Decline.FAILED: "It went wrong on this station, whose log says why.",
    Decline.SPENT: "The privacy budget of this station does not last for another round.",
    Decline.OTHER_VERSION: "This station speaks another version.",
    Decline.NO_MEMORY: "The policy takes more memory than this station gives.",
}


class Declined(Exception):
    """Raised where a station finds that it does not take part. Becomes an Error reply with the code's sentence;
    `reason` stays on the station."""

    def __init__(self, code: Decline, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Terms(msgspec.Struct, frozen=True, rename="kebab"):
    """What differs from round to round, and what a station cannot know from the run's settings."""

    version: int
    run: str
    server_round: int  # from 1
    rounds: int
    final: bool  # this adapter is what the run led to: keep it
    policy: str  # name of the base on the server; for people
    policy_hash: str
    statistics: dict[str, list[float]]  # `action.mean` -> six numbers
    proximal_mu: float = 0.0

    def record(self) -> dict[str, Any]:
        """Values as a ConfigRecord holds them."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        statistics: dict[str, list[float]] = values.pop("statistics")
        return values | {f"{STATISTIC}{name}": numbers for name, numbers in statistics.items()}


def read_terms(record: Mapping[str, Any]) -> Terms:
    """Raises Declined for another version, and for terms that cannot be read."""
    if record.get("version") != VERSION:
        raise Declined(
            Decline.OTHER_VERSION, f"The server speaks version {record.get('version')}, this station {VERSION}."
        )
    plain = {name: value for name, value in record.items() if not name.startswith(STATISTIC)}
    statistics = {name.removeprefix(STATISTIC): value for name, value in record.items() if name.startswith(STATISTIC)}
    try:
        return msgspec.convert(plain | {"statistics": statistics}, Terms, strict=False)
    except msgspec.ValidationError as error:
        raise Declined(Decline.NOT_AGREED, f"The terms of this round cannot be read: {error}.") from error


def check_metrics(record: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    """A station's metrics: these numbers and no others. Raises BadInput."""
    import math

    if set(record) != set(names):
        raise BadInput(f"metrics are {', '.join(sorted(record))} instead of {', '.join(sorted(names))}.")
    found = {}
    for name in names:
        value = record[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadInput(f"{name} is {value!r}.")
        found[name] = float(value)
    return found
