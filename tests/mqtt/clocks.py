"""Time that a test owns."""

from agent.api.mqtt.timekeeping import Synchrony, Timekeeping

NOW_S = 1_795_000_000.0


class OwnClock:
    """Stands still until it is moved; its wall may be set back, as an operator or a bad server does."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000_000
        self.wall = NOW_S

    def now_ns(self) -> int:
        return self.ns

    def wall_s(self) -> float:
        return self.wall

    def advance(self, s: float) -> None:
        self.ns += round(s * 1e9)
        self.wall += s


def keeping(good: bool) -> Timekeeping:
    made = Timekeeping((lambda: Synchrony(good, "This station's clock is not synchronised."),))
    made.look()
    return made
