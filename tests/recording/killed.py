"""A repair that ends in the middle, as a function that a nursery can call."""

import os
import signal

from agent.config import StationConfig
from agent.robot.recording.durable import Disk
from agent.robot.recording.repair import repair


class Killer:
    """Ends the process before the n-th file operation."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.steps = 0

    def __call__(self, step: str) -> None:
        if self.steps == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps += 1


def repair_until(config: StationConfig, at: int) -> None:
    """Repair, and be killed before step `at`."""
    repair(config, Disk(Killer(at)))
