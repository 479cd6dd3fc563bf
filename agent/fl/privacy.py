"""Local differential privacy: what leaves a station hardly depends on what it learnt from, and by how much is counted.

The change that training made is shortened to an L2 norm of at most `clip`, then every number of it gets Gaussian noise
with the standard deviation `noise * clip`. Whoever sees the message, the server included, can tell any two sets of
episodes of this station apart only as well as two Gaussians whose means are 2 * clip apart. One such message is
(2 / noise)-GDP, and messages compose exactly: mu = sqrt(mu_1^2 + mu_2^2 + ...) (Gaussian differential privacy: Dong,
Roth and Su 2019, arXiv:1905.02383). It is a tight bound, where accountants by Renyi divergence give an upper one.

What is protected is a station's whole data, so that nobody needs to be trusted; the price is much noise. It averages
out over thousands of stations, hardly over three. Noise among so few is worth it with central noise only, which a
server adds (Flower's `DifferentialPrivacyServerSideFixedClipping`), and which one has to trust.

Flower's LocalDpMod is not used: it counts no rounds, and draws its noise from numpy's global generator, which a run
seeds with a number that the server chose: the server could subtract it. Here the operating system gives the seed.
"""

import math
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.errors import Fatal
from agent.fl.brief import Privacy
from agent.fl.settings import Settings
from agent.inference.importer import sync

type Arrays = dict[str, NDArray[np.float32]]

WIDEST_EPSILON: Final = 1e9
"""More than that is no privacy at all."""

HALVINGS: Final = 200


def agreed(settings: Settings, station: Privacy | None) -> Privacy | None:
    """The stricter of what the run asks for and what the station insists on; None: neither wants noise."""
    asked = Privacy(settings.privacy_clip, settings.privacy_noise, settings.privacy_delta) if settings.private else None
    if asked is None or station is None:
        return asked or station
    return Privacy(
        min(asked.clip, station.clip),
        max(asked.noise, station.noise),
        min(asked.delta, station.delta),
        station.max_epsilon,
    )


def protect(change: Mapping[str, NDArray[np.float32]], clip: float, noise: float, dice: np.random.Generator) -> Arrays:
    """Shortened to `clip`, then with noise; without `noise`, only shortened."""
    length = math.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in change.values()))
    factor = min(1.0, clip / length) if length else 1.0
    return {
        name: (value * factor + dice.normal(0.0, noise * clip, value.shape)).astype(np.float32)
        for name, value in change.items()
    }


def true_dice() -> np.random.Generator:
    """Random numbers that nobody else can draw again."""
    return np.random.Generator(np.random.PCG64(secrets.randbits(256)))


def mu_of(noise: float) -> float:
    """Of one message: the distance of two changes of length `clip`, in standard deviations of the noise."""
    return 2.0 / noise


def epsilon(mu: float, delta: float) -> float:
    """Of everything that is mu-GDP together, at this delta: the smallest epsilon with delta(epsilon) <= delta, where
    delta(epsilon) = Phi(-epsilon / mu + mu / 2) - e^epsilon Phi(-epsilon / mu - mu / 2) (Dong et al., corollary 1)."""
    if mu <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while _delta(mu, high) > delta:
        high *= 2
        if high > WIDEST_EPSILON:
            return math.inf
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(mu, middle) > delta else (low, middle)
    return high


def _delta(mu: float, eps: float) -> float:
    second = min(0.0, eps + _log_phi(-eps / mu - mu / 2))
    return math.exp(_log_phi(-eps / mu + mu / 2)) - math.exp(second)


def _log_phi(x: float) -> float:
    """Logarithm of the normal distribution; far out by its asymptotic series, where erfc is zero."""
    if x > -30:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    return -x * x / 2 - math.log(-x) - math.log(2 * math.pi) / 2 + math.log1p(-1 / (x * x) + 3 / x**4)


class Release(msgspec.Struct, frozen=True):
    """One message with noise that left this station."""

    run: str
    round: int
    mu: float
    at_s: float  # since the epoch


class _Book(msgspec.Struct):
    releases: list[Release]


class Ledger:
    """What a station has spent, over all runs. On the disk before a message leaves."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def releases(self) -> list[Release]:
        """Raises Fatal when the book cannot be read: nobody knows then what may still be spent."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Book).releases
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            raise Fatal(
                f"Cannot read {self._path}, which says what privacy was spent: {error}.",
                "Restore it from a backup; removing it would forget what other people may know already.",
            ) from error

    def mu(self) -> float:
        return math.sqrt(sum(each.mu**2 for each in self.releases()))

    def spend(self, run: str, number: int, mu: float) -> None:
        """Raises Fatal when it cannot be written."""
        releases = [*self.releases(), Release(run, number, mu, round(time.time(), 3))]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new = self._path.with_name(f".{self._path.name}.new")
            new.write_bytes(msgspec.json.encode(_Book(releases)) + b"\n")
            sync(new)
            new.replace(self._path)
            sync(self._path.parent)
        except OSError as error:
            raise Fatal(f"Cannot write what privacy is spent to {self._path}: {error}.", "Free disk space.") from error
