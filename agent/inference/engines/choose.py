"""From a bundle and the settings to an engine that was compared with lerobot and is warm."""

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from agent.config import Policy as Settings
from agent.errors import AgentError, BadInput
from agent.inference.bundle import Bundle
from agent.inference.engine import Actions, Engine, Observation, Traits
from agent.inference.engines.arithmetic import WORTH, Arithmetic, BFloat16, Float32, Int8, speedup
from agent.inference.engines.check import Case, Deviation, answers, cases, compare, describe, guide, require
from agent.inference.engines.computer import HERE, NS_PER_S, Checked, Computer
from agent.inference.engines.reference import Reference
from agent.inference.engines.shorter import Shorter
from agent.inference.engines.smolvla.weights import obstacle
from agent.inference.loading import Loaded, load_policy
from agent.telemetry import logger


@dataclass(frozen=True)
class Place:
    """What every engine is built from."""

    loaded: Loaded
    settings: Settings
    cache: Path | None  # where converted weights are kept between runs; None: they are not
    frames: Sequence[Observation]  # real ones, to calibrate with; may be empty


def _shorter(arithmetic: Arithmetic) -> Callable[[Place], Computer]:
    return lambda place: Shorter.of(place.loaded, arithmetic, reuse_vision=place.settings.reuse_vision)


FLOAT32: Final = Float32()
BFLOAT16: Final = BFloat16()
INT8: Final = Int8()

MAKERS: Final[dict[str, Callable[[Place], Computer]]] = {
    "reference": lambda place: Reference(place.loaded),
    "exact": _shorter(FLOAT32),
    "bf16": _shorter(BFLOAT16),
    "int8": _shorter(INT8),
}
"""Slowest first, where a host has what the later ones need."""


def load_engine(
    bundle: Bundle, settings: Settings, *, cache: Path | None = None, frames: Sequence[Observation] = ()
) -> Engine:
    """The engine that `settings.engine` names, or the fastest within its bound for `auto`; compared and warm.

    Sets the number of PyTorch's threads for the whole process. Raises Fatal when the named engine is further from
    lerobot's prediction than `settings.max_deviation`, BadInput when it cannot run this policy or not on this host.
    """
    torch.set_num_threads(threads(settings))
    loaded = load_policy(bundle)
    policy: Any = loaded.policy
    options = _shorten_flow(policy, settings)
    place = Place(loaded, settings, cache, frames)
    reference = Reference(loaded)
    asked, wanted, seconds = _questions(reference, bundle, policy.config)
    own = Deviation((0.0,) * 6, 0.0, seconds)

    if settings.engine == "auto":
        name, computer, deviation, note = _fastest(place, reference, asked, wanted, own)
        options += (note,) if note else ()
    elif settings.engine == "reference":
        name, computer, deviation = "reference", reference, own
    else:
        name = settings.engine
        computer, deviation = _made(name, place, asked, wanted)
        require(name, deviation, settings.max_deviation)
    logger.info("engine", name=name, deviation=deviation.largest, seconds=deviation.seconds, joints=deviation.joints)

    if computer is not reference:
        reference.close()
        policy.model = None  # the engine has taken what it needs
        gc.collect()
    manifest = bundle.manifest
    traits = Traits(
        name=name,
        place=HERE,
        chunk_size=manifest.chunk_size,
        period_ns=round(NS_PER_S / manifest.fps),
        cameras=dict(manifest.cameras),
        guided=computer.guided,
        deviation=deviation.largest,
        options=(*options, *computer.options),
    )
    return Checked(computer, traits)


def threads(settings: Settings) -> int:
    """How many to compute with: one core is left to the control loop."""
    return settings.threads or max(1, (os.cpu_count() or 1) - 1)


def _shorten_flow(policy: Any, settings: Settings) -> tuple[str, ...]:
    """Fewer flow steps are an option of the policy itself: the reference takes as many."""
    if settings.flow_steps is None:
        return ()
    if not hasattr(policy.config, "num_steps"):
        raise BadInput(
            f"policy.flow_steps is set, but {policy.config.type} policies do not flow.", "Remove policy.flow_steps."
        )
    policy.config.num_steps = settings.flow_steps
    return (f"flow_steps={settings.flow_steps}",)


def _questions(reference: Reference, bundle: Bundle, config: Any) -> tuple[list[Case], list[Actions], float]:
    """What every engine is asked, what lerobot answers, and how long it takes for one answer."""
    asked = cases(bundle.manifest, config)
    size = bundle.manifest.chunk_size
    wanted, seconds = answers(reference, asked, size)
    if reference.guided:
        last = guide(asked[-1], wanted[0])
        asked.append(last)
        wanted += answers(reference, [last], size)[0]
    return asked, wanted, seconds


def _made(name: str, place: Place, asked: Sequence[Case], wanted: Sequence[Actions]) -> tuple[Computer, Deviation]:
    """Raises BadInput when this policy or this host cannot."""
    why = obstacle(place.loaded.policy)
    if why:
        raise BadInput(f"The engine {name} cannot run this policy: {why}.", "Set policy.engine to reference or auto.")
    computer = MAKERS[name](place)
    found, seconds = answers(computer, asked, len(wanted[0]))
    return computer, compare(found, wanted, seconds)


def _fastest(
    place: Place, reference: Reference, asked: Sequence[Case], wanted: Sequence[Actions], own: Deviation
) -> tuple[str, Computer, Deviation, str]:
    """The fastest engine within its bound, what it is called, and a note on faster ones that were not taken."""
    best: tuple[str, Computer, Deviation] = ("reference", reference, own)
    if obstacle(place.loaded.policy):
        return *best, ""
    tried, refused = {"reference": own}, []
    for name in _promising():
        try:
            computer, deviation = _made(name, place, asked, wanted)
            tried[name] = deviation
            require(name, deviation, place.settings.max_deviation)
        except AgentError as error:
            refused.append(name)
            logger.warning("engine not taken", name=name, reason=str(error))
            continue
        gain = 1.0 if name == "exact" else WORTH
        if deviation.seconds * gain < best[2].seconds:
            best = (name, computer, deviation)
    logger.info("engines tried", chosen=best[0], tried=describe(tried))
    return *best, f"not {', '.join(refused)}: beyond max_deviation" if refused else ""


def _promising() -> list[str]:
    """Engines that may be the fastest here, most accurate first."""
    names = ["exact"]
    names += ["bf16"] if speedup(BFLOAT16) >= WORTH else []
    names += ["int8"] if speedup(INT8) >= WORTH else []
    return names
