"""Record episodes."""

import sys
import time
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agent.cli.command import Command, group, invocation, show_error
from agent.errors import DeviceFault, Refused

COMMIT_S: Final = 60.0
"""A commit takes 0.3 s; a full hour of video on a slow disk stays far below this."""

ALIGN_S: Final = 30.0
"""Across the whole table at slow speed takes 10 s; after that the agent itself says what is in the way."""

LOOK_S: Final = 0.2


def register(app: typer.Typer) -> None:
    record = group("record", "Record episodes while the arm is teleoperated or executes.")
    record.command(
        "start",
        cls=Command,
        epilog='Example: so-agent record start --task "pick up the cube" --episodes 20 --episode-s 15 --reset-s 8',
    )(start)
    record.command("stop", cls=Command, epilog="Example: so-agent record stop --success")(stop)
    record.command("discard", cls=Command, epilog="Example: so-agent record discard")(discard)
    record.command("rerecord", cls=Command, epilog="Example: so-agent record rerecord")(rerecord)
    app.add_typer(record)


def start(
    task: Annotated[str, typer.Option(help="What the arm does, in 1 to 30 characters.")],
    episodes: Annotated[int, typer.Option(min=1, max=10_000, help="How many to record, one after the other.")] = 1,
    episode_s: Annotated[
        float | None, typer.Option(min=1, help="Length of one episode in seconds; default: until `record stop`.")
    ] = None,
    reset_s: Annotated[float, typer.Option(min=0, help="Seconds between episodes, to put things back.")] = 5.0,
    wait: Annotated[
        bool | None,
        typer.Option("--wait/--no-wait", help="Show progress until all are recorded; the default on a terminal."),
    ] = None,
) -> None:
    """Record one episode or several of one task. Needs a running teleop (or a policy)."""
    from agent.task_text import check_task

    plan: dict[str, Any] = {"task": check_task(task), "episodes": episodes, "reset_s": reset_s}
    if episode_s is not None:
        plan["episode_s"] = episode_s
    if wait is None:
        wait = sys.stdout.isatty() and not invocation().json
    if not wait:
        result = _when_aligned(lambda: invocation().call("record.start", plan))
        invocation().show(result, f"Recording {plan['task']!r}. End it with `so-agent record stop`.")
        return
    _show_results(_when_aligned(lambda: _follow({**plan, "wait": True})))


def _when_aligned(begin: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `begin` answers, if need be once the follower has reached the leader: `teleop start` does not wait for that,
    and both may stand in a row."""
    try:
        return begin()
    except Refused:
        if not _is_aligning():
            raise
    if not invocation().json:
        typer.echo("Waiting until the follower has reached the leader.", err=True)
    give_up_s = time.monotonic() + ALIGN_S
    while _is_aligning() and time.monotonic() < give_up_s:
        time.sleep(LOOK_S)
    return begin()


def _is_aligning() -> bool:
    return bool(invocation().call("status")["mode"] == "aligning")


def _follow(plan: dict[str, Any]) -> dict[str, Any]:
    """Show progress until the session is over; what it came to."""
    if invocation().json:
        return invocation().call("record.start", plan, COMMIT_S)
    console = Console(stderr=True)
    try:
        with Live(console=console, transient=True, refresh_per_second=4) as live:
            return invocation().call("record.start", plan, COMMIT_S, lambda event: live.update(progress_line(event)))
    except KeyboardInterrupt:
        console.print("The agent goes on recording; `so-agent record stop` ends it.")
        raise


def progress_line(event: dict[str, Any]) -> Text:
    """One line about a running session, from the agent's progress object."""
    text = Text.assemble(
        (f"episode {min(event['episode'], event['episodes'])} of {event['episodes']}  ", "bold"),
        ("● " if event["phase"] == "episode" else "↺ ", "red" if event["phase"] == "episode" else "yellow"),
    )
    if event["phase"] == "episode":
        text.append(f"{event['seconds']:.1f} s, {event['frames']} frames")
        repeats = sum(event["repeats"].values())
        if repeats:
            text.append(f", {repeats} repeated", "yellow")
    else:
        text.append("put things back")
    return text


def stop(
    success: Annotated[
        bool | None, typer.Option("--success/--failure", help="Judge the episode; default: not judged.")
    ] = None,
) -> None:
    """End the running episode now, commit it, and end the session."""
    _show_results(invocation().call("record.stop", {"success": success}, COMMIT_S))


def discard() -> None:
    """Throw the running episode away and end the session; earlier episodes stay."""
    _show_results(invocation().call("record.discard", None, COMMIT_S))


def rerecord() -> None:
    """Throw the running episode away and record it again after the reset time."""
    invocation().show(invocation().call("record.rerecord"), "Discarded; the same episode is recorded again.")


def _show_results(summary: dict[str, Any]) -> None:
    """What became of every episode. Raises DeviceFault when the session ended before its plan did."""
    problem = summary.pop("problem", "")
    failure = DeviceFault(problem, "See `so-agent status`; committed episodes are kept.") if problem else None
    if invocation().json:
        if failure:
            show_error(failure, as_json=True, also=summary)
            raise typer.Exit(failure.exit_code)
        invocation().show(summary, "")
        return
    Console().print(_table(summary))
    if failure:
        raise failure


def _table(summary: dict[str, Any]) -> Table:
    table = Table(title=str(summary["task"]), title_justify="left", box=None, pad_edge=False)
    for name in ("episode", "outcome", "frames", "repeats", "readable after", "reason"):
        table.add_column(name, justify="left" if name in ("outcome", "reason") else "right")
    for result in summary["results"]:
        wait_s = result["stop_to_readable_s"]
        table.add_row(
            "-" if result["episode"] is None else str(result["episode"]),
            Text(result["outcome"], "green" if result["outcome"] == "committed" else "yellow"),
            str(result["frames"]),
            str(sum(result["repeats"].values())),
            "-" if wait_s is None else f"{wait_s:.2f} s",
            result["reason"],
        )
    return table
