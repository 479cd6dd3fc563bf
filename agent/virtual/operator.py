"""A scripted person at the leader arm: smooth, at human speed, over and over, from a seed."""

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from agent.errors import BadInput
from agent.messages import JOINTS, Joints
from agent.virtual.arm import VirtualArm, move
from agent.virtual.arm_model import RANGE_DEG
from agent.virtual.dynamics import Dynamics
from agent.virtual.kinematics import Kinematics
from agent.virtual.realtime import run_like_hardware
from agent.virtual.scene import CUBE_HALF_M

PEAK_SPEED: Final = 85.0  # degrees (or percent of the gripper) a second: an unhurried hand
PEAK_OVER_MEAN: Final = 1.875  # of the minimum-jerk profile 10t^3 - 15t^4 + 6t^5
SHORTEST_MOVE_S: Final = 0.4
PACE_S: Final = 0.25  # how long the hand takes to stop or to start again
HOVER_M: Final = 0.09
TOUCH_M: Final = 0.009  # of the fingertip's middle, which is 3 mm thick on either side
PUSH_M: Final = 0.012  # fingertip height while pushing: below the middle of the cube
STAND_OFF_M: Final = 0.045  # where a push begins, behind the cube
GRASP_M: Final = 0.022
APPROACH_M: Final = 0.05  # the height from which a single reach comes down
PASSING_M: Final = 0.02  # lower than this between two places the hand is lifted first
BESIDE_M: Final = 0.05  # but not when it is as near as this: then it just goes there
LONGEST_PUSH_M: Final = 0.16  # further than this a cube tends to slip off a finger that is 14 mm wide
OPEN_PCT: Final = 50.0
CLOSED_PCT: Final = 2.0
REACHED_S: Final = 0.5  # a hand stays this long on what it touched
PATH_CHECKS: Final = 12
AT_REST_DEG: Final = 3.0
PICK_PITCHES_DEG: Final = (85.0, 75.0, 65.0, 55.0)  # steepest first: the further out, the flatter

REST: Final[Joints] = (0.0, -90.0, 88.0, 60.0, 0.0, 5.0)
READY: Final[Joints] = (0.0, -35.0, 45.0, 65.0, 0.0, 5.0)


class Task(StrEnum):
    TOUCH = "touch"  # a fingertip to the middle of the disc
    PUSH = "push"  # the cube along the table onto the disc
    PICK = "pick"  # the cube through the air onto the disc
    MIXED = "mixed"  # touch and push in turn


@dataclass(frozen=True)
class Move:
    """Through these poses, starting where the hand is, then wait."""

    name: str
    poses: tuple[Joints, ...]
    dwell_s: float = 0.2


class _Motion:
    """One move under way: minimum jerk along the path, so that joints start and stop softly."""

    def __init__(self, start: Joints, planned: Move) -> None:
        self.name = planned.name
        self._path = np.array([start, *planned.poses])
        lengths = np.abs(np.diff(self._path, axis=0)).max(axis=1)
        self._marks = np.concatenate([[0.0], np.cumsum(lengths)])
        self._moving_s = max(SHORTEST_MOVE_S, PEAK_OVER_MEAN * float(self._marks[-1]) / PEAK_SPEED)
        self._total_s = self._moving_s + planned.dwell_s
        self._at_s = 0.0

    def advance(self, dt_s: float) -> None:
        self._at_s += dt_s

    @property
    def over(self) -> bool:
        return self._at_s >= self._total_s

    def pose(self) -> Joints:
        share = min(1.0, self._at_s / self._moving_s)
        along = (10 * share**3 - 15 * share**4 + 6 * share**5) * self._marks[-1]
        leg = min(int(np.searchsorted(self._marks, along, side="right")), len(self._marks) - 1)
        before, after = self._marks[leg - 1], self._marks[leg]
        part = (along - before) / (after - before) if after > before else 1.0
        pose: list[float] = (self._path[leg - 1] + (self._path[leg] - self._path[leg - 1]) * part).tolist()
        return pose[0], pose[1], pose[2], pose[3], pose[4], pose[5]


class Operator:
    """Moves the leader. A plant: `step` it in real time. Commands may come from another thread.

    A hand yields to a motor: while the leader's torque is on, its servos follow their goals; when it goes off the
    hand starts a new cycle from wherever the arm is.
    """

    def __init__(self, leader: VirtualArm, dynamics: Dynamics, seed: int = 0, task: Task = Task.MIXED) -> None:
        self._leader = leader
        self._dynamics = dynamics
        self._kinematics = Kinematics(dynamics.scene)  # of the thinking thread
        self._check = Kinematics(dynamics.scene)  # of `go_to`, under the lock
        self._reaching = Kinematics(dynamics.scene)  # of `reach`, under its own lock: planning takes a while
        self._one_reach = threading.Lock()
        self._lock = threading.Lock()
        self._seed = seed
        self._pace = 0.0
        self._motion: _Motion | None = None
        self._script: Iterator[Move] = iter(())
        self._thinking = ThreadPoolExecutor(1, "operator", initializer=run_like_hardware)
        self._thought: Future[list[Move]] | None = None
        self._finishing = False  # the script under way is a cycle
        self._errand = False  # the script under way is a commanded pose
        self.paused = False
        self.task = task
        self._target: str | None = None  # the disc to use; None: each in turn
        self.cycles = 0  # finished
        self.skipped = 0  # objects that lay out of reach
        leader.set_joints_deg(REST)

    @property
    def doing(self) -> str:
        return self._motion.name if self._motion else "waiting"

    @property
    def thinking(self) -> bool:
        return self._thought is not None and not self._thought.done()

    def close(self) -> None:
        self._thinking.shutdown(wait=True, cancel_futures=True)

    def pause(self) -> None:
        """Stop where the hand is, within PACE_S."""
        self.paused = True

    def resume(self) -> None:
        """Go on; after a commanded pose with a new cycle."""
        with self._lock:
            self._errand = False
            self.paused = False

    def set_task(self, task: Task, disc: str | None = None) -> None:
        """From the next cycle on; one that is planned but not begun is planned again. No disc: each in turn."""
        if disc is not None and disc not in self._dynamics.scene.discs:
            raise BadInput(f"There is no {disc!r} on the table.", f"Discs: {', '.join(self._dynamics.scene.discs)}.")
        with self._lock:
            self.task, self._target = task, disc
            self._thought = None

    def go_to(self, pose: Sequence[float]) -> None:
        """Move to a pose and stay until `resume`. Raises BadInput when an arm would hit the table or its stops."""
        if len(pose) != len(JOINTS) or not all(math.isfinite(value) for value in pose):
            raise BadInput(f"A pose has {len(JOINTS)} numbers.", f"Give {', '.join(JOINTS)}.")
        wanted: Joints = tuple(float(value) for value in pose)  # type: ignore[assignment]
        for index, name in enumerate(JOINTS):
            low, high = (0, 100) if name == "gripper" else RANGE_DEG[index]
            if not low <= wanted[index] <= high:
                raise BadInput(f"{name} cannot go to {wanted[index]:g}.", f"Its range is {low:g} to {high:g}.")
        with self._lock:
            if _lowest_between(self._check, self._leader.joints_deg(), wanted) <= 0:
                raise BadInput(
                    "On its way to that pose the arm would hit the table.", "Raise it, or go there in steps."
                )
            self._send_on(Move("to the commanded pose", (wanted,)))

    def reach(self, disc: str) -> None:
        """From wherever the hand is touch a disc in one movement and stay until `resume`; the table is left as it is.

        Raises BadInput when there is no such disc or no way to it.
        """
        if disc not in self._dynamics.scene.discs:
            raise BadInput(f"There is no {disc!r} on the table.", f"Discs: {', '.join(self._dynamics.scene.discs)}.")
        with self._one_reach:
            poses = self._way_to(disc, self._leader.joints_deg())
        if not poses:
            raise BadInput(f"The {disc} is out of reach from here.", "Place it elsewhere, or start from another pose.")
        with self._lock:
            self._send_on(Move(f"reaching for the {disc}", poses, dwell_s=REACHED_S))

    def _send_on(self, errand: Move) -> None:
        """Drop what is under way for a commanded move. Call with the lock held."""
        self._script, self._motion = iter([errand]), None
        self._errand, self._finishing, self._thought = True, False, None
        self.paused = False

    def _way_to(self, disc: str, start: Joints) -> tuple[Joints, ...]:
        """Over the disc and down; a hand that would sweep the table on the way there is lifted first. From beside the
        disc straight to its middle: a person corrects a touch that is a little off without starting over."""
        x, y, _ = self._dynamics.objects()[disc]
        kinematics = self._reaching
        down = kinematics.line((x, y, APPROACH_M), (x, y, TOUCH_M))
        here = kinematics.forward(start)
        if down and math.dist(here, (x, y, TOUCH_M)) < BESIDE_M and _lowest_between(kinematics, start, down[-1]) > 0:
            return down[-1:]
        if not down or _lowest_between(kinematics, start, down[0]) >= PASSING_M:
            return down
        lifted = kinematics.reach((here[0], here[1], HOVER_M))
        return (lifted, *down) if lifted and _lowest_between(kinematics, start, lifted) > 0 else ()

    def step(self, dt_s: float) -> None:
        with self._lock:
            with self._leader.locked() as servos:
                held = any(servo.driving for servo in servos)
                if held:
                    for servo in servos:
                        move(servo, dt_s)
                for servo in servos:
                    servo.advance(dt_s)
            if held:
                self._script, self._motion = iter(()), None
                self._finishing, self._thought = False, None
                return
            towards = 0.0 if self.paused else 1.0
            change = dt_s / PACE_S
            self._pace += max(-change, min(change, towards - self._pace))
            if self._pace > 0:
                self._continue(dt_s * self._pace, dt_s)
            else:
                self._hold()

    def _hold(self) -> None:
        with self._leader.locked() as servos:
            for servo in servos:
                servo.velocity = 0.0

    def _continue(self, share_s: float, dt_s: float) -> None:
        if self._motion is None or self._motion.over:
            planned = next(self._script, None) or self._next_cycle()
            if planned is None:
                self._motion = None
                return
            self._motion = _Motion(self._leader.joints_deg(), planned)
        self._motion.advance(share_s)
        pose = self._motion.pose()
        with self._leader.locked() as servos:
            for index, servo in enumerate(servos):
                to = self._leader.scale.to_counts(index, pose[index])
                servo.velocity = (to - servo.position) / dt_s
                servo.position = to

    def _next_cycle(self) -> Move | None:
        """The first move of a new cycle; None while it is still being thought out, or after a commanded pose."""
        if self._errand:
            return None
        if self._finishing:
            self._finishing = False
            self.cycles += 1
            self._dynamics.scatter(self._seed + self.cycles)
        if self._thought is None:
            # Planning takes up to 0.2 s: not in the thread that moves the arm.
            self._thought = self._thinking.submit(lambda: list(self._cycle(self._leader.joints_deg())))
        if not self._thought.done():
            return None
        self._script, self._thought = iter(self._thought.result()), None
        self._finishing = True
        return next(self._script)

    def _cycle(self, start: Joints) -> Iterator[Move]:
        """Rest, do the task, rest; then the table is laid anew."""
        if max(abs(a - b) for a, b in zip(start, REST, strict=True)) > AT_REST_DEG:
            yield Move("to rest", (READY, REST) if self._kinematics.lowest_m(start) < HOVER_M / 2 else (REST,))
        task = self.task
        if task is Task.MIXED:
            task = (Task.TOUCH, Task.PUSH)[self.cycles % 2]
        yield Move("getting ready", (READY,))
        acts = {Task.TOUCH: self._touch, Task.PUSH: self._push, Task.PICK: self._pick}
        yield from acts[task]()
        yield Move("going back", (READY, REST), dwell_s=0.6)

    def _disc(self) -> str:
        discs = self._dynamics.scene.discs
        return self._target or discs[self.cycles % len(discs)]

    def _touch(self) -> Iterator[Move]:
        disc = self._disc()
        x, y, _ = self._dynamics.objects()[disc]
        down = self._kinematics.line((x, y, HOVER_M), (x, y, TOUCH_M))
        if not down:
            self.skipped += 1
            return
        yield Move(f"over the {disc}", down[:1])
        yield Move(f"onto the {disc}", down[1:], dwell_s=0.5)
        yield Move("lifting", down[::-1])

    def _push(self) -> Iterator[Move]:
        scene, objects = self._dynamics.scene, self._dynamics.objects()
        cube, disc = scene.cubes[self.cycles % len(scene.cubes)], self._disc()
        (cx, cy, _), (dx, dy, _) = objects[cube], objects[disc]
        apart = math.hypot(dx - cx, dy - cy)
        ux, uy = (dx - cx) / max(apart, 1e-6), (dy - cy) / max(apart, 1e-6)
        behind = (cx - STAND_OFF_M * ux, cy - STAND_OFF_M * uy)
        # The finger stops short of the disc's middle by half a cube: then the cube lies on it.
        stop = (dx - CUBE_HALF_M * ux, dy - CUBE_HALF_M * uy)
        down = self._kinematics.line((*behind, HOVER_M), (*behind, PUSH_M))
        along = self._kinematics.line((*behind, PUSH_M), (*stop, PUSH_M))
        up = self._kinematics.line((*stop, PUSH_M), (*stop, HOVER_M))
        if not (down and along and up) or apart > LONGEST_PUSH_M:
            self.skipped += 1
            yield from self._touch()
            return
        yield Move(f"behind the {cube}", down[:1])
        yield Move("down", down[1:])
        yield Move(f"pushing the {cube} to the {disc}", along[1:], dwell_s=0.4)
        yield Move("lifting", up[1:])

    def _pick(self) -> Iterator[Move]:
        scene, objects = self._dynamics.scene, self._dynamics.objects()
        cube, disc = scene.cubes[self.cycles % len(scene.cubes)], self._disc()
        yaw = self._dynamics.object_yaw(cube)
        fetch = self._over_and_down(objects[cube], yaw)
        put = self._over_and_down(objects[disc], yaw)
        if not (fetch and put):
            self.skipped += 1
            yield from self._touch()
            return
        (above, at), (over, on) = fetch, put
        yield Move(f"over the {cube}", (above,))
        yield Move(f"down to the {cube}", (at,))
        yield Move("closing", (_gripping(at),), dwell_s=0.4)
        yield Move("lifting", (_gripping(above),))
        yield Move(f"over the {disc}", (_gripping(over),))
        yield Move("down", (_gripping(on),))
        yield Move("letting go", (on,), dwell_s=0.3)
        yield Move("lifting", (over,))

    def _over_and_down(self, place: tuple[float, float, float], yaw: float) -> tuple[Joints, Joints] | None:
        """A pose above a place and one at it, jaws open and along the sides of a cube turned by `yaw`."""
        x, y, _ = place
        for pitch in PICK_PITCHES_DEG:
            found = []
            for height in (HOVER_M, GRASP_M):
                straight = self._kinematics.solve((x, y, height), pitch_deg=pitch, site="grasp")
                roll = (math.degrees(yaw) + (straight[0] if straight else 0.0) + 45) % 90 - 45
                pose = self._kinematics.solve(
                    (x, y, height), pitch_deg=pitch, roll_deg=roll, gripper_pct=OPEN_PCT, site="grasp"
                )
                if pose and self._kinematics.lowest_m(pose) > 0:
                    found.append(pose)
            if len(found) == 2:
                return found[0], found[1]
        return None


def _lowest_between(kinematics: Kinematics, start: Joints, end: Joints) -> float:
    """Height of the lowest solid corner on the straight way in joint space, in metres."""
    shares = np.linspace(0, 1, PATH_CHECKS)
    between = [tuple(a + (b - a) * float(share) for a, b in zip(start, end, strict=True)) for share in shares]
    return min(kinematics.lowest_m(pose) for pose in between)  # type: ignore[arg-type]


def _gripping(pose: Joints) -> Joints:
    return (*pose[:5], CLOSED_PCT)
