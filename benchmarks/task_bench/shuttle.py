"""Touch a disc; it jumps to another place; touch it there; and so on: how much gets done, and how fast it is seen."""

import time
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from benchmarks.task_bench.station import Table

NEAR_M: Final = 0.02
DWELL_S: Final = 0.15
"""The fingertip must stay: flying past is no touch."""

LONGEST_S: Final = 8.0
"""A place that is not touched by then is given up."""

MOVED_M: Final = 0.01
"""The arm has reacted when its fingertip has moved this far from where the jump found it."""

LOOK_S: Final = 0.02


@dataclass
class Shuttle:
    """What was done. Times in seconds."""

    seconds: float
    touched_after: list[float] = field(default_factory=list)
    given_up: int = 0
    reacted_after: list[float] = field(default_factory=list)

    @property
    def success(self) -> float:
        tries = len(self.touched_after) + self.given_up
        return len(self.touched_after) / tries if tries else 0.0


def shuttle(table: Table, disc: str, seconds: float, seed: int) -> Shuttle:
    """Watch an arm that was told to touch `disc`, and move the disc each time it did. Reads the simulation only."""
    done = Shuttle(seconds)
    end = time.monotonic() + seconds
    number = 0
    while (left := end - time.monotonic()) > 0:
        pose = table.scene.scatter(seed + number)[disc]
        before, _ = table.look()
        table.place({disc: (pose.x, pose.y)})
        number += 1
        _one(table, disc, before, min(LONGEST_S, left), done, cut=left < LONGEST_S)
    return done


def _one(table: Table, disc: str, before: tuple[float, ...], limit_s: float, done: Shuttle, *, cut: bool) -> None:
    """One place. `cut`: the run's end comes first, and then it counts as nothing."""
    begun = time.monotonic()
    near_since: float | None = None
    reacted = False
    while (since := time.monotonic() - begun) < limit_s:
        tip, objects = table.look()
        if not reacted and float(np.linalg.norm(np.subtract(tip, before))) > MOVED_M:
            reacted = True
            done.reacted_after.append(since)
        if float(np.linalg.norm(np.subtract(tip, objects[disc]))) <= NEAR_M:
            near_since = near_since or since
            if since - near_since >= DWELL_S:
                done.touched_after.append(near_since)
                return
        else:
            near_since = None
        time.sleep(LOOK_S)
    done.given_up += not cut
