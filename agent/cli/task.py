"""Let the arm do a task by itself."""

import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from agent.cli.command import Command, group, invocation
from agent.errors import DeviceFault
from agent.modes import Mode

LOAD_S: Final = 600.0
"""A large policy is read, compared with lerobot's own prediction and warmed up before the arm moves."""

END_S: Final = 60.0
LOOK_S: Final = 0.25


def register(app: typer.Typer) -> None:
    task = group("task", "Let the arm do a task by itself, with a policy.")
    task.command(
        "start",
        cls=Command,
        epilog='Example: so-agent task start --task "touch the red disc" --policy demo-reach --duration-s 10 --record',
    )(start)
    task.command("stop", cls=Command, epilog="Example: so-agent task stop --success")(stop)
    app.add_typer(task)


def start(
    task: Annotated[
        str, typer.Option(help="What the arm does: the policy reads it. 1 to 30 characters with --record.")
    ],
    policy: Annotated[
        str | None, typer.Option(help="Name of the policy; default: the one chosen by `so-agent policy use`.")
    ] = None,
    duration_s: Annotated[
        float | None, typer.Option(min=1, help="Stop and hold after so many seconds; default: until `task stop`.")
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Record it as one episode.")] = False,
    wait: Annotated[
        bool | None,
        typer.Option("--wait/--no-wait", help="Show how it goes until it is over; the default on a terminal."),
    ] = None,
) -> None:
    """Start a task. Take over at any time with `so-agent teleop start`; `teleop stop` gives the arm back."""
    from agent.task_text import POLICY_TEXT_MAX_CHARS, TASK_MAX_CHARS, check_task

    text = check_task(task, TASK_MAX_CHARS if record else POLICY_TEXT_MAX_CHARS)
    wanted: dict[str, Any] = {"task": text, "record": record}
    if policy is not None:
        wanted["policy"] = policy
    if duration_s is not None:
        wanted["duration_s"] = duration_s
    if wait is None:
        wait = sys.stdout.isatty() and not invocation().json
    console = Console(stderr=True, quiet=invocation().json)
    with console.status("Loading the policy") as shown:
        answer = invocation().call(
            "task.start", wanted, LOAD_S, lambda event: shown.update(str(event.get("reason", "loading")))
        )
    if not wait:
        invocation().show(answer, f"The arm does {wanted['task']!r}. End it with `so-agent task stop`.")
        return
    _show_end(_follow(console))


def _follow(console: Console) -> dict[str, Any]:
    """Show how the task goes until it is over; the task as it ended."""
    try:
        with Live(console=console, transient=True, refresh_per_second=4) as live:
            while (status := invocation().call("status"))["task"]:
                live.update(progress_line(status))
                time.sleep(LOOK_S)
    except KeyboardInterrupt:
        console.print("The arm goes on; `so-agent task stop` ends the task.")
        raise
    ended: dict[str, Any] = status["last_task"] or {}
    return {"mode": status["mode"], "reason": status["reason"], "task": ended}


def progress_line(status: Mapping[str, Any]) -> Text:
    """One line about a task under way, from the status object."""
    task, policy = status["task"], status["policy"] or {}
    execution = policy.get("execution") or {}
    text = Text.assemble((f"{task['task']!r} ", "bold"), f"{task['state']} {task['seconds']:.1f} s  ")
    text.append(f"queue {execution.get('depth', 0)}, {execution.get('chunks', 0)} chunks", "dim")
    if policy.get("delay_p95_s") is not None:
        text.append(f", delay {policy['delay_p50_s'] * 1e3:.0f}/{policy['delay_p95_s'] * 1e3:.0f} ms", "dim")
    if execution.get("starved_ticks"):
        text.append(f", {execution['starved_ticks']} ticks starved", "yellow")
    if status["mode"] == Mode.EXECUTING and policy.get("reason") not in ("running", None):
        text.append(f"  {policy['reason']}", "yellow")
    return text


def stop(
    success: Annotated[
        bool | None, typer.Option("--success/--failure", help="Judge the recorded episode; default: not judged.")
    ] = None,
) -> None:
    """End the task and hold the arm where it is."""
    answer = invocation().call("task.stop", {"success": success}, END_S)
    invocation().show(answer, f"Stopped after {answer['task']['seconds']:.1f} s; the arm holds.")


def _show_end(answer: dict[str, Any]) -> None:
    """Raises DeviceFault when the task did not end because its time was over or somebody stopped it."""
    task = answer["task"]
    why = str(task.get("over", "it ended"))
    if why not in WANTED:
        raise DeviceFault(f"The task ended: {why}.", "See `so-agent status`.")
    invocation().show(answer, f"Done after {task['seconds']:.1f} s: {why}; the arm holds.")


WANTED: Final = ("its time is over", "task stop was asked for", "hold was asked for", "park was asked for")
