"""A clock that tests move by hand."""

from agent.clock import NS_PER_S


class HandClock:
    """Both clocks stand until `pass_s`; the wall clock can be set."""

    def __init__(self) -> None:
        self.ns = 1_000 * NS_PER_S
        self.wall = 1_800_000_000.0

    def pass_s(self, seconds: float) -> None:
        self.ns += round(seconds * NS_PER_S)
        self.wall += seconds

    def now_ns(self) -> int:
        return self.ns

    def wall_s(self) -> float:
        return self.wall
