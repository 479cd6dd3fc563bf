"""What was recorded: list, look at, check, repair and judge episodes."""

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent.cli.command import Command, group, invocation
from agent.cli.locate import answers
from agent.errors import BadInput, DeviceFault, Refused

if TYPE_CHECKING:
    from agent.robot.recording.index import DatasetIndex

EpisodeNumber = Annotated[int, typer.Argument(min=0, metavar="EPISODE", help="The number that `episodes list` shows.")]
DatasetName = Annotated[str | None, typer.Option("--dataset", help="Another dataset of this station.")]


def register(app: typer.Typer) -> None:
    episodes = group("episodes", "What was recorded.")
    episodes.command("list", cls=Command, epilog="Example: so-agent episodes list --json")(list_)
    episodes.command("show", cls=Command, epilog="Example: so-agent episodes show 3")(show)
    episodes.command("check", cls=Command, epilog="Example: so-agent episodes check -c station.yaml")(check)
    episodes.command("repair", cls=Command, epilog="Example: so-agent episodes repair -c station.yaml")(repair)
    episodes.command("delete", cls=Command, epilog="Example: so-agent episodes delete 3")(delete)
    episodes.command("restore", cls=Command, epilog="Example: so-agent episodes restore 3")(restore)
    episodes.command("mark", cls=Command, epilog="Example: so-agent episodes mark 3 --success")(mark)
    app.add_typer(episodes)


def _index(dataset: str | None = None) -> "DatasetIndex":
    """The dataset folder itself: needs a configuration, but no running agent."""
    from agent.config import NAME_PATTERN
    from agent.robot.recording.index import DatasetIndex

    config = invocation().load()
    if dataset is not None and not re.fullmatch(NAME_PATTERN, dataset):
        raise BadInput(
            f"--dataset {dataset!r} is not the name of a dataset.",
            "Use lower case letters, digits, - and _; never a path.",
        )
    return DatasetIndex(config.paths.datasets / dataset if dataset else config.paths.dataset)


def list_(
    dataset: DatasetName = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Also those that were deleted.")] = False,
) -> None:
    """List the episodes of a dataset. Works without a running agent."""
    rows: list[dict[str, Any]] = (
        msgspec.to_builtins(_index(dataset).list(deleted))
        if invocation().config
        else invocation().call("episodes.list", {"deleted": True} if deleted else {})["episodes"]
    )
    if invocation().json:
        typer.echo(json.dumps(rows))
        return
    if not rows:
        typer.echo("No episodes yet.")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("episode", "task", "frames", "seconds", "source", "success", ""):
        table.add_column(name, justify="right" if name in ("episode", "frames", "seconds") else "left")
    for row in rows:
        table.add_row(
            str(row["episode"]),
            str(row["task"]),
            str(row["frames"]),
            f"{row['seconds']:.1f}",
            str(row["source"]),
            _judged(row["success"]),
            Text("deleted", "red") if row["deleted"] else Text("salvaged", "yellow") if row["salvaged"] else "",
        )
    Console().print(table)


def _judged(success: bool | None) -> Text:
    return Text("-", "dim") if success is None else Text("yes", "green") if success else Text("no", "red")


def show(episode: EpisodeNumber, dataset: DatasetName = None) -> None:
    """Everything that is known about one episode."""
    about: dict[str, Any] = (
        _index(dataset).show(episode)
        if invocation().config
        else invocation().call("episodes.show", {"episode": episode})["episode"]
    )
    if invocation().json:
        typer.echo(json.dumps(about))
        return
    grid = Table.grid(padding=(0, 2))
    for key, value in about.items():
        words = value if isinstance(value, str) else json.dumps(value)
        grid.add_row(Text(key, "bold"), words if len(words) <= 2000 else f"{words[:2000]}…")
    Console().print(grid)


def check(dataset: DatasetName = None) -> None:
    """Read every episode and compare it with its metadata: rows, frames, times. Changes nothing."""
    from agent.robot.recording.check import check as problems_of

    index = _index(dataset)
    problems = problems_of(index.dataset)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems)
        raise DeviceFault(f"The dataset {index.dataset} is not whole:\n{shown}", "Run `so-agent episodes repair`.")
    count = index.count()
    invocation().show({"episodes": count, "dataset": str(index.dataset)}, f"{count} episodes, all whole.")


def repair() -> None:
    """Finish interrupted commits and salvage what a crash left. The recorder does the same at every start."""
    from agent.robot.recording.repair import lock
    from agent.robot.recording.repair import repair as put_in_order

    config = invocation().load()
    if answers(config.paths.agent_socket):
        raise Refused(
            "Not possible while the agent runs: its recorder owns the dataset and has repaired it at its start.",
            "Stop the agent first if you want to repair by hand.",
        )
    held = lock(config)
    try:
        done = put_in_order(config)
    finally:
        held.release()
    lines = [
        *(f"Episode {number} was finished and is committed now." for number in done.finished),
        *(f"Episode {number} was salvaged." for number in done.salvaged),
        *(f"Removed {name}: nothing usable in it." for name in done.discarded),
        *(f"Kept {name} in the journal: {reason}" for name, reason in done.kept.items()),
    ]
    invocation().show(asdict(done), "\n".join(lines) or "Nothing to repair.")
    if done.kept:
        raise typer.Exit(DeviceFault.exit_code)


def mark(
    episode: EpisodeNumber,
    success: Annotated[
        bool | None, typer.Option("--success/--failure", help="The judgement; without it, it is taken back.")
    ] = None,
) -> None:
    """Judge a recorded episode. Goes through the running agent, which owns the dataset."""
    result = invocation().call("episodes.mark", {"episode": episode, "success": success})
    word = "not judged" if success is None else "a success" if success else "a failure"
    invocation().show(result, f"Episode {episode} is marked as {word}.")


def delete(episode: EpisodeNumber) -> None:
    """Hide an episode from lists and from training. Its files stay, so that it can be restored."""
    result = invocation().call("episodes.delete", {"episode": episode})
    invocation().show(result, f"Episode {episode} is deleted; `so-agent episodes restore {episode}` brings it back.")


def restore(episode: EpisodeNumber) -> None:
    """Bring a deleted episode back."""
    result = invocation().call("episodes.restore", {"episode": episode})
    invocation().show(result, f"Episode {episode} is back.")
