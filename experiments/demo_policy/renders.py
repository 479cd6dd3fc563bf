"""Pictures of random scenes, and where in them everything is: what the vision tower is pretrained on.

No actions and no tasks: a render shows the tower what discs, cube and arm look like, not what to do about them.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.messages import Joints
from agent.virtual.kinematics import Kinematics
from agent.virtual.operator import TOUCH_M
from agent.virtual.scene import IMAGE_PX, REACH_M, SECTOR_DEG, Pose2
from experiments.demo_policy.recipe import CAMERAS, Recipe
from experiments.demo_policy.simulator import Image, Simulator

SHARD: Final = 1_000
LOOSE_DEG: Final = ((-60, 60), (-98, 70), (-60, 96), (-30, 95), (-25, 25), (0, 50))
"""Of poses that are merely possible."""

AT_WORK: Final = 0.6
"""Share of poses with the fingertip above or on the table's middle, as in a reach."""

AT_HAND: Final = 0.5
"""Share of scenes with a disc under the fingertip or beside it. On tables laid at random that is rare, and there the
policy has to tell whether it has arrived."""

BESIDE_M: Final = 0.015
APART_M: Final = 0.06
HIGHEST_M: Final = 0.20
CLEARANCE_M: Final = 0.001
WORKING_POSES: Final = 1_200
JITTER_DEG: Final = 2.0
MARGIN: Final = 1.15  # objects may lie this much further out than the operator's


class Render(NamedTuple):
    """One shard. Places are (bearing, distance) from the arm's base, scaled to about -1 to 1."""

    front: Image  # (n, 3/4 px, px, 3)
    wrist: Image
    places: NDArray[np.float32]  # (n, objects, 2)
    seen: NDArray[np.float32]  # (n, cameras, objects, 3): across and up in the image from -1 to 1, in view or not
    joints: NDArray[np.float32]  # (n, 6), degrees / 60


def shards(recipe: Recipe) -> int:
    return max(1, recipe.renders // SHARD)


def draw(folder: Path, recipe: Recipe, progress: Callable[[int, int], None]) -> list[Path]:
    """Draw the shards that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.npz" for number in range(shards(recipe))]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if missing:
        with Simulator(recipe.network.image_px) as simulator:
            working = _working_poses(simulator, recipe.seed)
            for number in missing:
                random = np.random.default_rng((recipe.seed, number))
                shard = _shard(simulator, random, working, min(SHARD, recipe.renders))
                unfinished = paths[number].with_suffix(".tmp")
                with unfinished.open("wb") as file:
                    np.savez(file, **shard._asdict())
                unfinished.rename(paths[number])
                progress(number + 1, len(paths))
    return paths


def load(paths: list[Path]) -> Render:
    """All shards in one."""
    parts = []
    for path in paths:
        with np.load(path) as file:
            parts.append(Render(**{name: file[name] for name in Render._fields}))
    return Render(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _shard(simulator: Simulator, random: np.random.Generator, working: list[Joints], count: int) -> Render:
    px = simulator.images()[CAMERAS[0]].shape
    objects = len(simulator.scene.objects)
    shard = Render(
        np.empty((count, *px), np.uint8),
        np.empty((count, *px), np.uint8),
        np.empty((count, objects, 2), np.float32),
        np.empty((count, len(CAMERAS), objects, 3), np.float32),
        np.empty((count, 6), np.float32),
    )
    kinematics = Kinematics(simulator.scene)
    for index in range(count):
        joints = _pose(random, working, kinematics)
        places = _places(simulator, random)
        if random.random() < AT_HAND:
            places |= _at_hand(simulator, random, places, kinematics.forward(joints))
        simulator.pose(joints, places)
        images = simulator.images()
        shard.front[index], shard.wrist[index] = images["front"], images["wrist"]
        shard.places[index] = [_polar(simulator, name) for name in simulator.scene.objects]
        shard.seen[index] = [
            [_in_view(simulator, camera, name) for name in simulator.scene.objects] for camera in CAMERAS
        ]
        shard.joints[index] = np.array(joints) / 60
    return shard


def _working_poses(simulator: Simulator, seed: int) -> list[Joints]:
    random = np.random.default_rng((seed, 1_000_003))
    kinematics = Kinematics(simulator.scene)
    found: list[Joints] = []
    while len(found) < WORKING_POSES:
        reach, bearing = random.uniform(*REACH_M), math.radians(random.uniform(-SECTOR_DEG, SECTOR_DEG))
        height = TOUCH_M + (HIGHEST_M - TOUCH_M) * random.random() ** 2
        pose = kinematics.solve(
            (0.039 + reach * math.cos(bearing), reach * math.sin(bearing), height), pitch_deg=random.uniform(50, 90)
        )
        if pose:
            found.append(pose)
    return found


def _pose(random: np.random.Generator, working: list[Joints], kinematics: Kinematics) -> Joints:
    while True:
        if random.random() < AT_WORK:
            drawn = np.array(working[random.integers(len(working))]) + random.normal(0, JITTER_DEG, 6)
        else:
            drawn = np.array([random.uniform(*limits) for limits in LOOSE_DEG])
        drawn[5] = max(0.0, drawn[5])
        pose: Joints = tuple(drawn.tolist())  # type: ignore[assignment]
        if kinematics.lowest_m(pose) > CLEARANCE_M:
            return pose


def _places(simulator: Simulator, random: np.random.Generator) -> dict[str, Pose2]:
    """As the station lays its table, spread a little further, so that none of its places is at the edge."""
    spread = random.uniform(1 / MARGIN, MARGIN)
    return {
        name: Pose2(pose.x * spread, pose.y * spread, pose.yaw)
        for name, pose in simulator.scene.scatter(int(random.integers(2**31))).items()
    }


def _at_hand(
    simulator: Simulator, random: np.random.Generator, places: dict[str, Pose2], tip: tuple[float, float, float]
) -> dict[str, Pose2]:
    """One of the discs near the fingertip, unless that is off the table's middle or something else lies there."""
    base = simulator.data.body("shoulder").xpos
    bearing, reach = math.atan2(tip[1] - base[1], tip[0] - base[0]), math.hypot(tip[0] - base[0], tip[1] - base[1])
    if abs(bearing) > math.radians(SECTOR_DEG) * MARGIN or not REACH_M[0] / MARGIN < reach < REACH_M[1] * MARGIN:
        return {}
    disc = simulator.scene.discs[random.integers(len(simulator.scene.discs))]
    x, y = np.array(tip[:2]) + random.normal(0, BESIDE_M, 2)
    if any(math.dist((x, y), pose[:2]) < APART_M for name, pose in places.items() if name != disc):
        return {}
    return {disc: Pose2(float(x), float(y), places[disc].yaw)}


def _polar(simulator: Simulator, name: str) -> tuple[float, float]:
    x, y, _ = simulator.data.body(name).xpos - simulator.data.body("shoulder").xpos
    return math.atan2(y, x) / 0.6, (math.hypot(x, y) - 0.245) / 0.05


def _in_view(simulator: Simulator, view: str, name: str) -> tuple[float, float, float]:
    camera = simulator.data.camera(view)
    across, up, back = camera.xmat.reshape(3, 3).T @ (simulator.data.body(name).xpos - camera.xpos)
    if back > -0.01:
        return 0.0, 0.0, 0.0
    half = math.tan(math.radians(float(simulator.model.camera(view).fovy[0])) / 2)
    u, v = across / -back / half * IMAGE_PX[1] / IMAGE_PX[0], up / -back / half
    return (u, v, 1.0) if abs(u) < 1 and abs(v) < 1 else (0.0, 0.0, 0.0)
