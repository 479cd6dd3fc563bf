"""Is an engine what it says? It computes the same chunks as lerobot, from the same observations and the same noise."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agent.errors import Fatal
from agent.inference.bundle import Manifest
from agent.inference.engine import Actions, Guidance, Observation
from agent.inference.engines.computer import Computer, usable
from agent.messages import JOINTS

EXACT_RELATIVE: Final = 1e-5
"""What the engine that calls itself exact may differ by, of the largest action: float32 added in another order."""

TASK: Final = "pick up the cube"  # for policies that do not say what they were trained on
SEED: Final = 20250608
NOISY: Final = 0.15  # of the pixels' range: pictures with edges, faces and a camera's grain
GUIDED_ACTIONS: Final = 0.4  # of a chunk: what is still on its way when the next one is computed


@dataclass(frozen=True)
class Case:
    observation: Observation
    noise: NDArray[np.float32] | None
    guidance: Guidance | None = None


@dataclass(frozen=True)
class Deviation:
    """How far an engine is from the reference."""

    joints: tuple[float, ...]  # the largest difference of each joint over all chunks; degrees, gripper in percent
    relative: float  # the largest of all, of the largest action
    seconds: float  # of the fastest chunk; the first one warms up and does not count

    @property
    def largest(self) -> float:
        return max(self.joints)

    def __str__(self) -> str:
        worst = JOINTS[int(np.argmax(self.joints))]
        return f"{self.largest:.2g} {'%' if worst == 'gripper' else '°'} at {worst}"


def cases(manifest: Manifest, config: Any, number: int = 3) -> list[Case]:
    """Fixed synthetic observations, the same on every host: pictures of the sizes the policy was trained on."""
    rng = np.random.default_rng(SEED)
    sizes = {name: config.input_features[name].shape[1:] for name in manifest.cameras.values()}
    tasks = manifest.tasks or (TASK,)
    width = getattr(config, "max_action_dim", None)
    found = []
    for index in range(number):
        images = {name: picture(rng, height, breadth) for name, (height, breadth) in sizes.items()}
        *body, gripper = rng.uniform(0, 1, len(JOINTS))
        joints = (*(float(80 * value - 40) for value in body), float(100 * gripper))
        noise = None
        if width is not None:
            noise = rng.standard_normal((manifest.chunk_size, width), dtype=np.float32)
        observation = Observation(joints, images, tasks[index % len(tasks)])  # type: ignore[arg-type]
        found.append(Case(observation, noise))
    return found


def picture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """RGB (height, width, 3): a shaded ground, a few coloured discs and boxes, and grain."""
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    slope = rng.uniform(-0.5, 0.5, (2, 3))
    image = rng.uniform(0.3, 0.7, 3) + rows[..., None] * slope[0] + columns[..., None] * slope[1]
    for _ in range(4):
        y, x, size = rng.uniform(0, 0.75), rng.uniform(0, 1), rng.uniform(0.03, 0.15)
        colour = rng.uniform(0, 1, 3)
        image[(rows - y) ** 2 + (columns - x) ** 2 < size**2] = colour
        image[(abs(rows - x) < size) & (abs(columns - y) < size / 2)] = 1 - colour
    image += rng.normal(0, NOISY / 3, image.shape)
    pixels: NDArray[np.uint8] = (image.clip(0, 1) * 255).astype(np.uint8)
    return pixels


def guide(case: Case, chunk: Actions) -> Case:
    """`case`, drawn to the end of `chunk`."""
    known = max(2, round(len(chunk) * GUIDED_ACTIONS))
    return Case(case.observation, case.noise, Guidance(chunk[-known:], known // 2, known))


def answers(computer: Computer, asked: Sequence[Case], chunk_size: int) -> tuple[list[Actions], float]:
    """The chunk of every case, and the seconds of the fastest but the first."""
    chunks, seconds = [], []
    for case in asked:
        begin = time.perf_counter()
        actions = computer.predict(case.observation, case.guidance if computer.guided else None, case.noise)
        seconds.append(time.perf_counter() - begin)
        chunks.append(usable(actions, chunk_size))
    return chunks, min(seconds[1:] or seconds)


def compare(found: Sequence[Actions], wanted: Sequence[Actions], seconds: float) -> Deviation:
    differences = np.stack([abs(mine - theirs).max(axis=0) for mine, theirs in zip(found, wanted, strict=True)])
    joints = tuple(float(value) for value in differences.max(axis=0))
    return Deviation(joints, max(joints) / float(max(abs(theirs).max() for theirs in wanted)), seconds)


def require(name: str, deviation: Deviation, bound: float) -> None:
    """Raises Fatal when an engine is further from the reference than it may be."""
    if name == "exact":
        allowed, is_ = f"{EXACT_RELATIVE:g} of the largest action", f"{deviation.relative:.2g} of it"
        within = deviation.relative <= EXACT_RELATIVE
    else:
        allowed, is_ = f"{bound:g}", str(deviation)
        within = deviation.largest <= bound
    if not within:
        joints = ", ".join(f"{joint} {value:.2g}" for joint, value in zip(JOINTS, deviation.joints, strict=True))
        raise Fatal(
            f"The engine {name} differs from lerobot's own prediction by {is_}; allowed is {allowed} "
            f"(largest by joint: {joints}).",
            "Set policy.engine to exact or auto, or raise policy.max_deviation if the arm may miss by so much.",
        )


def describe(found: Mapping[str, Deviation]) -> str:
    return ", ".join(f"{name} {one.seconds:.3g} s ({one})" for name, one in found.items())
