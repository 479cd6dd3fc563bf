"""From a bundle and the settings to an engine that was compared with lerobot and is warm."""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from agent.config import Policy as Settings
from agent.errors import AgentError, BadInput, Fatal
from agent.inference.bundle import Bundle
from agent.inference.engine import Actions, Engine, Observation, Traits
from agent.inference.engines import openvino
from agent.inference.engines.arithmetic import WORTH, Arithmetic, BFloat16, Float32, Int8, speedup
from agent.inference.engines.check import Case, Deviation, answers, cases, compare, describe, guide, require
from agent.inference.engines.computer import HERE, NS_PER_S, Checked, Computer
from agent.inference.engines.cuda import on_cuda
from agent.inference.engines.memory import remember, remembered
from agent.inference.engines.reference import Reference
from agent.inference.engines.shorter import Shorter, torch_eyes
from agent.inference.engines.smolvla.weights import obstacle
from agent.inference.loading import Loaded, load_policy
from agent.telemetry import logger

FLOAT32: Final = Float32()
BFLOAT16: Final = BFloat16()
INT8: Final = Int8()


@dataclass(frozen=True)
class Place:
    """What every engine is built from."""

    loaded: Loaded
    settings: Settings
    cache: Path | None  # where this bundle's converted weights are kept between runs; None: they are not
    pictures: Callable[[], list[Tensor]]  # to calibrate with, (3, size, size) each in -1..1


def _reference(place: Place) -> Iterator[Computer]:
    yield Reference(place.loaded)


def _exact(place: Place) -> Iterator[Computer]:
    yield Shorter.of(place.loaded, FLOAT32, reuse_vision=place.settings.reuse_vision)


def _bf16(place: Place) -> Iterator[Computer]:
    yield Shorter.of(place.loaded, BFLOAT16, reuse_vision=place.settings.reuse_vision)


def _int8(place: Place) -> Iterator[Computer]:
    """All of it in bytes; or the vision tower only, which is most of the work and forgives most."""
    reuse = place.settings.reuse_vision
    yield Shorter.of(place.loaded, INT8, reuse_vision=reuse)
    eyes = torch_eyes(place.loaded.policy, INT8)
    yield Shorter.of(place.loaded, _plain(), eyes, reuse_vision=reuse, notes=("int8 vision only",))


def _openvino(place: Place) -> Iterator[Computer]:
    """The vision tower in every precision this host has, fastest first, before what PyTorch does best."""
    for precision in openvino.precisions(place.cache):
        eyes = openvino.openvino_eyes(
            place.loaded.policy, precision, place.pictures, place.cache, threads(place.settings)
        )
        rest = [INT8, _plain()] if precision == "int8" and speedup(INT8) >= WORTH else [_plain()]
        for arithmetic in rest:
            notes = (f"{precision} vision", *([f"{arithmetic.name} beyond"] if arithmetic is not FLOAT32 else []))
            yield Shorter.of(place.loaded, arithmetic, eyes, reuse_vision=place.settings.reuse_vision, notes=notes)


def _cuda(place: Place) -> Iterator[Computer]:
    yield on_cuda(place.loaded, reuse_vision=place.settings.reuse_vision)


def _plain() -> Arithmetic:
    """The faster of the float types that nobody doubts."""
    return BFLOAT16 if speedup(BFLOAT16) >= WORTH else FLOAT32


MAKERS: Final[dict[str, Callable[[Place], Iterator[Computer]]]] = {
    "reference": _reference,
    "exact": _exact,
    "bf16": _bf16,
    "int8": _int8,
    "openvino": _openvino,
    "cuda": _cuda,
}
"""Each gives what it can be, fastest first: the first that is within its bound is taken."""


def load_engine(
    bundle: Bundle, settings: Settings, *, cache: Path | None = None, frames: Sequence[Observation] = ()
) -> Engine:
    """The engine that `settings.engine` names, or the fastest within its bound for `auto`; compared and warm.

    `frames` are real observations to calibrate int8 with; `cache` is a folder for what was converted and found out
    about this bundle. Sets the number of PyTorch's threads for the whole process.

    Raises Fatal when the named engine is further from lerobot's prediction than `settings.max_deviation`, BadInput
    when it cannot run this policy or not on this host.
    """
    torch.set_num_threads(threads(settings))
    loaded = load_policy(bundle)
    policy: Any = loaded.policy
    options = _shorten_flow(policy, settings)
    place = Place(loaded, settings, cache, lambda: _pictures(loaded, frames or [case.observation for case in asked]))
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
    logger.info("engine", name=name, deviation=deviation.largest, seconds=deviation.seconds, joints=deviation.joints)

    if computer is not reference:
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


def _pictures(loaded: Loaded, observations: Sequence[Observation]) -> list[Tensor]:
    """As the vision tower gets them."""
    policy: Any = loaded.policy
    return [image[0] for one in observations for image in policy.prepare_images(loaded.prepare(one))[0]]


def _made(name: str, place: Place, asked: Sequence[Case], wanted: Sequence[Actions]) -> tuple[Computer, Deviation]:
    """The first of an engine's variants that is within its bound.

    Raises Fatal when none is, BadInput when this policy or this host cannot.
    """
    why = obstacle(place.loaded.policy)
    if why:
        raise BadInput(f"The engine {name} cannot run this policy: {why}.", "Set policy.engine to reference or auto.")
    beyond: AgentError | None = None
    for computer in MAKERS[name](place):
        found, seconds = answers(computer, asked, len(wanted[0]))
        deviation = compare(found, wanted, seconds)
        try:
            require(name, deviation, place.settings.max_deviation)
        except Fatal as error:
            logger.info("variant beyond its bound", engine=name, options=computer.options, deviation=str(deviation))
            computer.close()
            beyond = error
        else:
            return computer, deviation
    assert beyond is not None  # noqa: S101  (every maker gives at least one)
    raise beyond


def _fastest(
    place: Place, reference: Reference, asked: Sequence[Case], wanted: Sequence[Actions], own: Deviation
) -> tuple[str, Computer, Deviation, str]:
    """The fastest engine within its bound, what it is called, and a note on faster ones that were not taken."""
    if obstacle(place.loaded.policy):
        return "reference", reference, own, ""
    best: tuple[str, Computer, Deviation] = ("reference", reference, own)
    tried, refused = {"reference": own}, []
    known = remembered(place.cache, place.settings, MAKERS)
    for names in ([known] if known else [], _promising(place.cache)):
        for name in names:
            try:
                computer, deviation = _made(name, place, asked, wanted)
            except AgentError as error:
                refused.append(name)
                logger.warning("engine not taken", name=name, reason=str(error))
                continue
            tried[name] = deviation
            gain = 1.0 if name == "exact" else WORTH
            if deviation.seconds * gain < best[2].seconds:
                best = (name, computer, deviation)
        if best[0] != "reference":
            break
    logger.info("engines tried", chosen=best[0], tried=describe(tried))
    remember(place.cache, place.settings, best[0])
    return *best, f"not {', '.join(dict.fromkeys(refused))}: beyond max_deviation" if refused else ""


def _promising(cache: Path | None) -> list[str]:
    """Engines that may be the fastest here, most accurate first."""
    names = ["exact"]
    names += ["bf16"] if speedup(BFLOAT16) >= WORTH else []
    names += ["int8"] if speedup(INT8) >= WORTH else []
    names += ["openvino"] if cache and openvino.available() else []  # a conversion takes too long to be forgotten
    return names + (["cuda"] if torch.cuda.is_available() else [])
