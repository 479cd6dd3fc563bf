"""The second half of the demo: the arm does by itself what it was shown, and a person takes over in the middle."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent.api.local import Client
from agent.config import StationConfig
from agent.errors import AgentError
from agent.virtual.client import inject

POLICY: Final = Path(__file__).resolve().parents[2] / "policies" / "demo-reach"
"""A small SmolVLA that learnt from episodes of this virtual station; docs/demo-policy.md tells how."""

MODEL: Final = "so101"
"""The arm that it knows."""

OBJECTS: Final = ("--disc=red", "--disc=blue", "--cube=green")
"""What it knows: two discs, of which the task names one, and a cube that is in the way."""

NEAR_M: Final = 0.02
"""A fingertip this near to the middle of a disc touches it."""

LONGEST_S: Final = 10.0
LOAD_S: Final = 300.0
LOOK_S: Final = 0.05
BEFORE_TAKEOVER_S: Final = 0.6
TAKEN_TO: Final = (35.0, -40.0, 40.0, 60.0, 0.0, 5.0)
TABLES: Final = (7, 11, 23)
"""Seeds of the tables that are laid: none of them was recorded."""

type Wait = Callable[[str, Callable[[], bool], float], None]
"""For what, until when, and how many seconds at most."""


@dataclass
class Done:
    """What became of one task."""

    task: str
    touched_s: float | None  # after the start, or after the arm was given back
    taken_over: bool
    chunks: int
    starved_ticks: int
    delay_p95_ms: float | None
    problem: str = ""  # why it was not carried out


def install(config: StationConfig) -> str:
    """Put the shipped policy into the station's library; its name."""
    there = config.paths.policies / POLICY.name
    if there.exists():
        shutil.rmtree(there)
    shutil.copytree(POLICY, there)
    return POLICY.name


def carry_out(config: StationConfig, client: Client, wait: Wait) -> list[Done]:
    """Three tasks; in the last one a person takes over and gives back. `wait` raises when it takes too long."""
    name = install(config)
    tasks = [("red", False), ("blue", False), ("red", True)]
    done = []
    for (disc, taken_over), seed in zip(tasks, TABLES, strict=True):
        try:
            done.append(_one(config, client, wait, name, disc, seed, taken_over=taken_over))
        except AgentError as error:  # on a busy host servos answer late, and the arm stops, as it should
            done.append(Done(f"touch the {disc} disc", None, taken_over, 0, 0, None, str(error)))
    return done


def _one(
    config: StationConfig,
    client: Client,
    wait: Wait,
    policy: str,
    disc: str,
    seed: int,
    *,
    taken_over: bool,
) -> Done:
    task = f"touch the {disc} disc"
    inject(config, {"operator": "pause", "scene": {"seed": seed}})
    client.call("task.start", {"task": task, "policy": policy, "record": True}, timeout_s=LOAD_S)
    if taken_over:
        time.sleep(BEFORE_TAKEOVER_S)
        client.call("teleop.start")
        wait("a person has the arm", lambda: client.call("status")["mode"] == "teleop", LONGEST_S)
        inject(config, {"operator": {"pose": list(TAKEN_TO)}})
        wait("the person has moved the arm", lambda: _state(config)["operator"]["doing"] == "waiting", LONGEST_S)
        client.call("teleop.stop")
    touched_s = _until_touched(config, f"{disc} disc")
    status = client.call("status")
    client.call("task.stop", {"success": touched_s is not None}, timeout_s=LOAD_S)
    execution, delay_s = status["policy"]["execution"], status["policy"]["delay_p95_s"]
    return Done(
        task,
        touched_s,
        taken_over,
        execution["chunks"],
        execution["starved_ticks"],
        None if delay_s is None else round(delay_s * 1e3, 1),
    )


def _until_touched(config: StationConfig, disc: str) -> float | None:
    began = time.monotonic()
    while (since := time.monotonic() - began) < LONGEST_S:
        state = _state(config)
        tip, where = state["arms"]["follower"]["fingertip"], state["objects"][disc]
        if sum((a - b) ** 2 for a, b in zip(tip, where, strict=True)) <= NEAR_M**2:
            return round(since, 2)
        time.sleep(LOOK_S)
    return None


def _state(config: StationConfig) -> dict[str, Any]:
    state: dict[str, Any] = inject(config, {"state": True})["state"]
    return state


def render(done: list[Done]) -> RenderableType:
    """A table, and below it why a task was not carried out."""
    problems = [Text(f"{one.task}: {one.problem}", "yellow") for one in done if one.problem]
    return Group(_table(done), *problems)


def _table(done: list[Done]) -> Table:
    drawn = Table(title="By itself, with the policy demo-reach", title_justify="left")
    for name in ("task", "touched after", "taken over", "chunks", "starved ticks", "delay p95"):
        drawn.add_column(name, justify="left" if name == "task" else "right", no_wrap=name == "task")
    for one in done:
        drawn.add_row(
            one.task,
            _touched(one),
            "and back" if one.taken_over else "",
            str(one.chunks),
            str(one.starved_ticks),
            "-" if one.delay_p95_ms is None else f"{one.delay_p95_ms:.0f} ms",
        )
    return drawn


def _touched(one: Done) -> Text:
    if one.touched_s is None:
        return Text("stopped" if one.problem else "not", "yellow")
    return Text(f"{one.touched_s:.1f} s")


def plain(done: list[Done]) -> list[dict[str, Any]]:
    return [asdict(one) for one in done]
