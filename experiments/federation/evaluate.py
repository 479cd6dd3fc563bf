"""Closed loop on many tables at once: one simulator, one batch of predictions for all of them.

The same plans, timing and judgement as `experiments.demo_policy.evaluate`, but every start is by itself: its result
does not depend on the one before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray

from agent.messages import Joints
from agent.virtual.scene import Pose2
from experiments.demo_policy.evaluate import LATE_TICKS, LONGEST_S, REPLAN_TICKS, RESTS_TICKS
from experiments.demo_policy.plan import FIRST_UNSEEN, Planner
from experiments.demo_policy.recipe import CAMERAS, CHUNK, CONTROL_HZ, NEAR_M, task_text
from experiments.demo_policy.simulator import Image, Simulator
from experiments.federation.situations import bearing_deg

AT_ONCE: Final = 25
"""Tables that one batch of predictions is for."""


@dataclass(frozen=True)
class Start:
    """How one start ended."""

    number: int
    named: str  # `red disc`
    bearing_deg: float  # of the named disc, from the arm's base
    miss_m: float
    touched: str | None  # the disc that the fingertip is at when time is up
    chosen: str | None = None  # the first disc that it rested at for a third of a second; not known of the whole stack

    @property
    def success(self) -> bool:
        return self.touched == self.named


class Tables(Simulator):
    """Many arms at their tables, drawn by one graphics context. `turn_to` says which one the other methods mean."""

    def __init__(self, image_px: int, count: int) -> None:
        super().__init__(image_px)
        self._all = [self.data, *(mujoco.MjData(self.model) for _ in range(count - 1))]
        self._times_s = [0.0] * count
        self._turned_to = 0

    def turn_to(self, table: int) -> None:
        self._times_s[self._turned_to] = self._time_s
        self._turned_to, self.data, self._time_s = table, self._all[table], self._times_s[table]


@dataclass
class _Running:
    number: int
    named: str
    places: dict[str, Pose2]
    chunk: NDArray[np.float32]
    made: int = 0
    rests: int = 0  # ticks at a disc
    chosen: str | None = None


class Evaluation:
    """`policy` is lerobot's, and so are `processors`, which go before and after it."""

    def __init__(self, tables: Tables, policy: Any, processors: tuple[Any, Any]) -> None:
        self._tables, self._policy = tables, policy
        self._before, self._after = processors
        self._planner = Planner(tables.scene)

    def run(self, numbers: list[int], heard: Callable[[int], None] = lambda _: None) -> list[Start]:
        """Unseen starts by their numbers from 0; `heard` is told how many are done."""
        done: list[Start] = []
        for first in range(0, len(numbers), AT_ONCE):
            done += self._together(numbers[first : first + AT_ONCE])
            heard(len(done))
        return done

    def _together(self, numbers: list[int]) -> list[Start]:
        running = [self._begin(table, number) for table, number in enumerate(numbers)]
        dice = torch.Generator().manual_seed(numbers[0])  # of the flow's noise
        due: dict[int, tuple[int, NDArray[np.float32]]] = {}
        for tick in range(round(LONGEST_S * CONTROL_HZ)):
            if tick % REPLAN_TICKS == 0:
                due[tick + LATE_TICKS] = (tick, self._chunks(running, dice))
            if tick in due:
                made, chunks = due.pop(tick)
                for each, chunk in zip(running, chunks, strict=True):
                    each.made, each.chunk = made, chunk
            for table, each in enumerate(running):
                self._tables.turn_to(table)
                self._tables.tick(each.chunk[min(tick - each.made, CHUNK - 1)])
                at = next((disc for disc, place in each.places.items() if self._tables.near(place)), None)
                each.rests = each.rests + 1 if at in self._tables.scene.discs else 0
                if each.rests == RESTS_TICKS and each.chosen is None:
                    each.chosen = at
        return [self._end(table, each) for table, each in enumerate(running)]

    def _begin(self, table: int, number: int) -> _Running:
        plan = self._planner.plan(FIRST_UNSEEN + number)
        start: Joints = plan.start or self._planner.somewhere(np.random.default_rng(number))
        places = self._tables.scene.scatter(plan.scene_seed)
        self._tables.turn_to(table)
        self._tables.reset(start, places)
        return _Running(number, plan.disc, places, np.tile(self._tables.joints(), (CHUNK, 1)))

    def _end(self, table: int, each: _Running) -> Start:
        tables = self._tables
        tables.turn_to(table)
        miss_m = tables.miss_m(each.places[each.named])
        touched = min(tables.scene.discs, key=lambda disc: tables.miss_m(each.places[disc]))
        near = tables.miss_m(each.places[touched]) < NEAR_M
        place = each.places[each.named]
        bearing = bearing_deg(place.x, place.y, tables.scene)
        return Start(each.number, each.named, bearing, miss_m, touched if near else None, each.chosen)

    def _chunks(self, running: list[_Running], dice: torch.Generator) -> NDArray[np.float32]:
        """(tables, CHUNK, 6) from what every table shows now."""
        states, views = [], {camera: list[Image]() for camera in CAMERAS}
        for table in range(len(running)):
            self._tables.turn_to(table)
            states.append(self._tables.joints())
            for camera, image in self._tables.images().items():
                views[camera].append(image)
        observation: dict[str, Any] = {
            "observation.state": torch.from_numpy(np.stack(states)),
            "task": [task_text(each.named) for each in running],
        }
        for camera, images in views.items():
            pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
            observation[f"observation.images.{camera}"] = pictures
        config = self._policy.config
        noise = torch.randn((len(running), CHUNK, config.max_action_dim), generator=dice)
        with torch.no_grad():
            chunks = self._policy.predict_action_chunk(self._before(observation), noise=noise)
        found: NDArray[np.float32] = self._after(chunks).numpy()
        return found
