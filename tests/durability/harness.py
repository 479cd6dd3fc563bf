"""Kills parts of a recording station at random instants, and checks what must never happen.

    python -m tests.durability.harness --kills 300 --seed 1

Promises, checked after every kill: no finished episode is missing; the unfinished one is there up to the last second
before the kill; the dataset opens in stock lerobot; no goal on the servo bus jumps.
"""

import argparse
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agent.errors import AgentError
from tests.station.live import LiveStation, wait_for

VICTIMS: Final = {"recorder": 0.4, "arm": 0.3, "agent": 0.15, "all": 0.15}
"""What is killed, and how often. The last two cost a cold start each."""

FPS: Final = 30
LOST_AT_MOST_S: Final = 1.0
STOP_BEFORE_KILL: Final = 0.35
"""Share of kills that fall into the commit of an episode."""

OPEN_EVERY: Final = 10
"""Stock lerobot takes seconds to open a dataset; after every so many kills is enough."""

COUNTS_PER_DEGREE: Final = 4096 / 360
MAX_SPEED_DEG_S: Final = 240.0
MAX_GRIPPER_DEG_S: Final = 4.0 * 110.0
"""400 % a second of a travel of about 110 degrees."""

PAUSE_NS: Final = 100_000_000
ADOPTED_DEG: Final = 2.0
"""After three periods without a goal another process has the arm: it goes on from the last goal, at slow speed; or from
where the arm is, if the agent says that it had let go of it meanwhile, as it does of an overloaded one."""

REJECTED_SHARE: Final = 0.05
"""A starved recorder may lack rows and say so; one that rejects more than this is broken."""

MIN_ROWS: Final = 4
"""An episode of fewer rows may be discarded: nobody finishes one within a tenth of a second."""


@dataclass(frozen=True)
class Progress:
    """What a recorder's report said. Reports are half a second apart: rows go on after the last one."""

    rows: int
    at_s: float  # of CLOCK_MONOTONIC, as time.monotonic() is

    def rows_at(self, moment_s: float) -> float:
        return self.rows + (moment_s - self.at_s) * FPS


@dataclass
class Tally:
    kills: Counter[str] = field(default_factory=Counter)
    finished: dict[str, int] = field(default_factory=dict)  # task -> rows promised by an answer
    rejected: list[str] = field(default_factory=list)  # why, as the answer said: a starved recorder may lack rows
    unfinished: int = 0
    worst_loss_s: float = -60.0  # negative: rows that came after the last report were kept
    largest_step_deg: float = -360.0  # beyond what is allowed; negative: never reached
    arm_back_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        total = sum(self.kills.values())
        return [
            f"{total} kills: " + ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items())),
            f"{len(self.finished)} finished episodes, all there" if not self.problems else "PROBLEMS:",
            *self.problems,
            *(f"rejected at its end, which was answered: {reason}" for reason in self.rejected),
            f"{self.unfinished} unfinished ones; at most {self.worst_loss_s:.2f} s before the kill was lost",
            f"the largest step between two goals stayed {-self.largest_step_deg:.2f} degrees below what is allowed",
        ]


class Harness:
    """One station, killed again and again."""

    def __init__(self, folder: Path, seed: int, victim: str | None = None) -> None:
        self._victims = {victim: 1.0} if victim else VICTIMS
        self._random = random.Random(seed)
        self.tally = Tally()
        small = {f"cameras__{name}__{side}": size for name in ("front", "wrist") for side, size in
                 (("width", 160), ("height", 120))}  # fmt: skip
        # A starved virtual camera repeats frames; what is tested here is that they are kept, not how many.
        self.live = LiveStation(folder, recording__max_repeat_pct=100.0, recording__min_free_gb=0.0, **small)
        self._wire_seen = 0
        self._log_seen = 0
        self._let_go: set[int] = set()  # servos that have had no goal since
        self._last_goal: dict[int, tuple[int, int]] = {}

    def run(self, kills: int, report: Any = print) -> Tally:
        self.live.start_virtual("--seed", "1")
        self.live.start_agent()
        for number in range(1, kills + 1):
            self._one(number)
            if number % OPEN_EVERY == 0 or number == kills:
                self._open_with_lerobot()
            if number % 5 == 0 or number == kills:
                report(f"{number}/{kills} kills, {len(self.tally.finished)} finished, "
                       f"{len(self.tally.problems)} problems")  # fmt: skip
        if len(self.tally.rejected) > max(1, kills * REJECTED_SHARE):
            self._problem(f"{len(self.tally.rejected)} episodes were rejected")
        return self.tally

    def close(self) -> None:
        self.live.close()

    def _one(self, number: int) -> None:
        rng = self._random
        victim = rng.choices(list(self._victims), list(self._victims.values()))[0]
        task = f"kill {number} {victim}"
        self._begin(task)
        started = wait_for("the first rows", self._progress, 10.0)
        time.sleep(rng.uniform(0.1, 2.0))  # the instant of the kill is what is random here
        stopping = rng.random() < STOP_BEFORE_KILL
        recording_since = started if stopping else (self._progress() or started)
        answer: dict[str, Any] = {}
        stopper = threading.Thread(target=self._stop, args=(answer,))
        recorded_until = None
        if stopping:
            recorded_until = time.monotonic()
            stopper.start()
            time.sleep(rng.uniform(0.0, 0.4))
        self._kill(victim)
        killed_at = time.monotonic()
        if stopping:
            stopper.join(15)
        if answer:
            result = answer["results"][-1]
            if result["outcome"] == "committed":
                self.tally.finished[task] = result["frames"]
            else:
                self._count_rejected(task, result["reason"])
        self._recover(victim, killed_at)
        rows_due = recording_since.rows_at(recorded_until or killed_at)
        self._check(task, rows_due, finished=bool(answer))
        self.tally.kills[victim] += 1

    def _progress(self) -> "Progress | None":
        """How many rows the recorder had, and when; None before the first."""
        recorder = (self.live.status() or {}).get("recorder") or {}
        return Progress(recorder["frames"], recorder["at_ns"] / 1e9) if recorder.get("frames") else None

    def _stop(self, answer: dict[str, Any]) -> None:
        with suppress(AgentError):  # the kill may come first; then nothing was promised
            result = self.live.client.call("record.stop", {}, timeout_s=15.0)
            if result["results"] and result["results"][-1]["outcome"] in ("committed", "rejected"):
                answer.update(result)

    def _begin(self, task: str) -> None:
        """Into teleop and recording; what has just been restarted may need a moment, and says so."""
        refusals: list[str] = []
        for _ in range(20):
            status = self.live.wait_ready()
            try:
                if status["recording"]:
                    self.live.client.call("record.stop", timeout_s=15.0)
                if status["mode"] != "teleop":
                    self.live.teleop()
                self.live.client.call("record.start", {"task": task})
                return
            except AgentError as error:
                refusals.append(str(error))
                time.sleep(0.25)
        raise AssertionError(f"recording does not start: {refusals[-3:]}")

    def _kill(self, victim: str) -> None:
        live = self.live
        match victim:
            case "agent":
                live.kill_agent()
            case "all":
                pids = live.descendants()
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                assert live.agent
                live.agent.wait()
                live.agent = None
            case name:
                os.kill(live.child_pid(name), signal.SIGKILL)

    def _recover(self, victim: str, killed_at: float) -> None:
        live = self.live
        if live.agent is None:
            live.start_agent()
        else:
            self._forgive()
            wait_for("the child was replaced", lambda: (s := live.status()) and s["children"][victim]["pid"], 30.0)
            if victim == "arm":
                live.wait_mode("hold", timeout_s=30.0)
                self.tally.arm_back_s.append(time.monotonic() - killed_at)
        live.wait_ready()

    def _forgive(self) -> None:
        """A child that is killed five times a minute is given up, as it should; a person would reset it."""
        time.sleep(0.3)
        status = self.live.status()
        if status and any(child["failed"] for child in status["children"].values()):
            self.live.client.call("reset")

    def _check(self, task: str, rows_due: float, finished: bool) -> None:
        def settled() -> bool:
            status = self.live.status()
            return bool(status and not status["recording"] and status["recorder"]["state"] == "ready")

        if not finished:
            with suppress(AgentError):
                self.live.client.call("record.stop", timeout_s=15.0)
        wait_for("recording is over", settled, 30.0)
        listed = {each["task"]: each for each in self.live.client.call("episodes.list", timeout_s=30.0)["episodes"]}
        for known, rows in self.tally.finished.items():
            if known not in listed:
                self._problem(f"finished episode {known!r} is gone")
            elif listed[known]["frames"] != rows:
                self._problem(f"finished episode {known!r} has {listed[known]['frames']} rows, not {rows}")
        if not finished:
            self.tally.unfinished += 1
            kept = listed[task]["frames"] if task in listed else 0
            lost_s = (rows_due - kept) / FPS
            if rows_due >= MIN_ROWS:
                self.tally.worst_loss_s = max(self.tally.worst_loss_s, lost_s)
                if lost_s > LOST_AT_MOST_S:
                    self._problem(f"unfinished episode {task!r} lost {lost_s:.2f} s ({rows_due:.0f} rows, {kept} kept)")
        self._check_wire()

    def _count_rejected(self, task: str, reason: str) -> None:
        self.tally.rejected.append(reason)
        if "rows are missing" not in reason:
            self._problem(f"finished episode {task!r} was rejected: {reason}")

    def _was_let_go(self) -> bool:
        """Whether the arm went limp since this was asked last, by the agent's own log."""
        fresh = self.live.log.read_bytes()[self._log_seen :]
        self._log_seen += len(fresh)
        return b'"after": "limp"' in fresh

    def _check_wire(self) -> None:
        """Two goals of one servo in a row never differ by more than its speed limit allows."""
        if self._was_let_go():
            self._let_go |= self._last_goal.keys()
        # Read once: goals are written all the time, and those between two reads would look like a pause and a jump.
        fresh = self.live.wire(self._wire_seen)
        self._wire_seen += len(fresh)
        for entry in (entry for entry in fresh if entry["arm"] == "follower"):
            servo, at_ns, goal = entry["id"], entry["ns"], entry["goal"]
            if servo in self._last_goal:
                before_ns, before = self._last_goal[servo]
                speed = MAX_GRIPPER_DEG_S if servo == 6 else MAX_SPEED_DEG_S
                # The loop may use up to two periods of time that it lost, and rounds to counts.
                restarted = at_ns - before_ns > PAUSE_NS
                allowed = ADOPTED_DEG if restarted else speed * 2 / FPS + 1.0
                step = abs(goal - before) / COUNTS_PER_DEGREE
                if restarted and servo in self._let_go and entry["present"] is not None:
                    step = min(step, abs(goal - entry["present"]) / COUNTS_PER_DEGREE)
                if step > allowed:
                    self._problem(f"servo {servo} jumped {step:.1f} degrees in {(at_ns - before_ns) / 1e6:.0f} ms")
                self.tally.largest_step_deg = max(self.tally.largest_step_deg, step - allowed)
                if restarted:
                    self._let_go.discard(servo)
            self._last_goal[servo] = (at_ns, goal)

    def _open_with_lerobot(self) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        # Where torchcodec does not fit, lerobot says so in sixty lines, and decodes with pyav.
        logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        opened = LeRobotDataset("local/episodes", root=self.live.config.paths.dataset)
        listed = self.live.client.call("episodes.list", timeout_s=30.0)["episodes"]
        rows = sum(each["frames"] for each in listed)
        if (opened.num_episodes, opened.num_frames) != (len(listed), rows):
            self._problem(f"lerobot sees {opened.num_episodes} episodes and {opened.num_frames} rows, "
                          f"the agent {len(listed)} and {rows}")  # fmt: skip
        for index in (0, opened.num_frames - 1):
            _ = opened[index]["observation.images.front"]

    def _problem(self, sentence: str) -> None:
        self.tally.problems.append(sentence)
        sys.stderr.write(sentence + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--victim", choices=list(VICTIMS), help="kill only this")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))
    harness = Harness(folder, options.seed, options.victim)
    try:
        tally = harness.run(options.kills, lambda line: print(line, flush=True))
        print("\n".join(tally.lines()))
        return 1 if tally.problems else 0
    except AssertionError:
        print(harness.live.log.read_text()[-6000:])
        raise
    finally:
        harness.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
