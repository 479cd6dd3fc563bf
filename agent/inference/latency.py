"""How long a chunk takes on this host, engine by engine and stage by stage, and what that means for the arm."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agent.inference.engine import Engine, Observation
from agent.inference.engines.computer import Checked
from agent.inference.verdict import verdict

CHUNKS: Final = 5
"""Of which the median counts."""

STAGES: Final = ("vision", "prefix", "step")


@dataclass(frozen=True)
class Latency:
    """Medians of one engine, in seconds. A stage is None where it cannot be told apart."""

    engine: str
    place: str
    options: tuple[str, ...]
    deviation: float  # largest of all joints, degrees or percent
    chunk_s: float
    vision_s: float | None  # all cameras
    prefix_s: float | None
    step_s: float | None  # one of the flow's
    sentence: str  # whether the arm will have to wait

    @property
    def row(self) -> tuple[str, ...]:
        """For a table with the columns `COLUMNS`; times in ms."""
        stages = (_ms(self.vision_s), _ms(self.prefix_s), _ms(self.step_s), _ms(self.chunk_s))
        return (self.engine, *stages, f"{self.deviation:.2g}", ", ".join(self.options))


COLUMNS: Final = ("engine", "vision ms", "prefix ms", "step ms", "chunk ms", "deviation", "options")


def measure(
    engine: Engine, observation: Observation, chunks: int = CHUNKS, clock: Callable[[], float] = time.perf_counter
) -> Latency:
    """Predict `chunks` times, after one that does not count, each time from other pictures. For an engine on another
    machine the way there and back is included."""
    engine.predict(observation)
    profiles = [_profile(engine, _changed(observation, turn), clock) for turn in range(chunks)]
    chunk, vision, prefix, step = (_median(profiles, stage) for stage in ("chunk", *STAGES))
    assert chunk is not None  # noqa: S101  (every profile has it)
    traits = engine.traits
    return Latency(
        engine=traits.name,
        place=traits.place,
        options=traits.options,
        deviation=traits.deviation,
        chunk_s=chunk,
        vision_s=vision,
        prefix_s=prefix,
        step_s=step,
        sentence=verdict(traits, chunk),
    )


def _profile(engine: Engine, observation: Observation, clock: Callable[[], float]) -> Mapping[str, float]:
    """By the engine itself, where it is one of this machine."""
    if isinstance(engine, Checked):
        return engine.profile(observation)
    begin = clock()
    engine.predict(observation)
    return {"chunk": clock() - begin}


def _changed(observation: Observation, turn: int) -> Observation:
    """With one pixel of each picture unlike the last time's, for engines that remember what they saw."""
    images = {name: image.copy() for name, image in observation.images.items()}
    for image in images.values():
        image[0, 0, 0] = turn % 256
    return replace(observation, images=images)


def _median(profiles: Sequence[Mapping[str, float]], stage: str) -> float | None:
    found = [profile[stage] for profile in profiles if stage in profile]
    return statistics.median(found) if found else None


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:,.1f}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"
