"""The station's policies: import, list, look at, verify, choose and remove. Imports neither torch nor lerobot."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent.cli import latency, serve
from agent.cli.command import Command, group, invocation
from agent.errors import BadInput

if TYPE_CHECKING:
    from agent.inference.bundle import Bundle
    from agent.inference.library import Entry, Library
    from agent.inference.trial import Trial

MB = 1e6

TASK_TEXT_MAX_CHARS = 200
"""More than any tokenizer of a policy reads."""

PolicyName = Annotated[str, typer.Argument(metavar="NAME", help="The name that `policy list` shows.")]


def register(app: typer.Typer) -> None:
    policy = group("policy", "What the arm does by itself: policies of lerobot, as bundles of this station.")
    policy.command(
        "import",
        cls=Command,
        epilog="Example: so-agent policy import outputs/train/reach/checkpoints/last/pretrained_model --name reach",
    )(import_)
    policy.command("list", cls=Command, epilog="Example: so-agent policy list --json")(list_)
    policy.command("show", cls=Command, epilog="Example: so-agent policy show reach")(show)
    policy.command("verify", cls=Command, epilog="Example: so-agent policy verify reach")(verify)
    policy.command("use", cls=Command, epilog="Example: so-agent policy use reach")(use)
    policy.command("remove", cls=Command, epilog="Example: so-agent policy remove reach")(remove)
    latency.register(policy)
    serve.register(policy)
    app.add_typer(policy)


def _library() -> "Library":
    """The policies below the state folder: needs a configuration, but no running agent."""
    from agent.inference.library import Library

    paths = invocation().load().paths
    return Library(paths.policies, paths.policy_in_use)


def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder, as lerobot saves it.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Its name here; default: after the folder.")] = None,
    fps: Annotated[int, typer.Option(metavar="N", help="Actions a second, as in the episodes it learnt from.")] = 30,
    camera: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VIEW=FEATURE",
            help="Which view is which camera of the policy, e.g. OBS_IMAGE_1=observation.images.front; again for each. "
            "Default: in the policy's order.",
        ),
    ] = None,
    vlm: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Configuration and tokenizer of its vision-language model; default: DIR/vlm."),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="Take mean and spread of the joints from this dataset, not the policy."),
    ] = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="What people should know about it.")] = "",
    task: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A task text it was trained on; again for each.")
    ] = None,
    trial: Annotated[
        bool, typer.Option("--trial/--no-trial", help="Load it and predict once before it counts.")
    ] = True,
) -> None:
    """Copy a policy into the station as a self-contained bundle. Nothing is fetched from a network, now or later."""
    from agent.inference.importer import Wish, import_checkpoint

    paths = invocation().load().paths
    wish = Wish(name, fps, _mapping(camera), vlm, statistics, description, tuple(_texts(task)))
    took: list[Trial] = []

    def try_it(bundle: "Bundle") -> None:
        from agent.inference.trial import try_out

        if not invocation().json:
            typer.echo("Copied and verified. Loading it and predicting once ...", err=True)
        took.append(try_out(bundle))

    bundle = import_checkpoint(folder.expanduser(), paths.policies, wish, try_it if trial else None)
    manifest = bundle.manifest
    cameras = ", ".join(f"{view} is {feature}" for view, feature in manifest.cameras.items())
    lines = [
        f"Imported {manifest.name}: {manifest.type}, {manifest.chunk_size} actions at {manifest.fps} Hz; {cameras}.",
        *(f"lerobot's own prediction took {trial.chunk_s:.1f} s here, before any engine." for trial in took),
        f"Choose it with `so-agent policy use {manifest.name}`.",
    ]
    result = {"policy": _about(_library().entry(manifest.name)), "chunk_s": took[0].chunk_s if took else None}
    invocation().show(result, "\n".join(lines))


def list_() -> None:
    """List the station's policies."""
    entries = _library().list()
    if invocation().json:
        typer.echo(json.dumps([_about(entry) for entry in entries]))
        return
    if not entries:
        typer.echo("No policies yet. Import one with `so-agent policy import DIR`.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("", "policy", "type", "actions", "Hz", "cameras", "MB", "hash", "description"):
        table.add_column(column, justify="right" if column in ("actions", "Hz", "cameras", "MB") else "left")
    for entry in entries:
        mark = Text("*" if entry.in_use else "", "green")
        if entry.manifest is None:
            table.add_row(mark, entry.name, "", "", "", "", f"{entry.bytes / MB:,.1f}", "", Text(entry.problem, "red"))
            continue
        it = entry.manifest
        table.add_row(
            mark,
            entry.name,
            it.type,
            str(it.chunk_size),
            str(it.fps),
            str(len(it.cameras)),
            f"{entry.bytes / MB:,.1f}",
            entry.hash,
            Text(it.description),
        )
    Console().print(table)
    typer.echo("* in use" if any(entry.in_use for entry in entries) else "None is in use: `so-agent policy use NAME`.")


def show(name: PolicyName) -> None:
    """Everything that is known about one policy."""
    entry = _library().entry(name)
    if entry.manifest is None:
        raise BadInput(entry.problem, f"Remove it with `so-agent policy remove {name}` and import it again.")
    about = _about(entry) | {"files": entry.manifest.files}
    if invocation().json:
        typer.echo(json.dumps(about))
        return
    grid = Table.grid(padding=(0, 2))
    for key, value in about.items():
        match value:
            case dict():
                words = "\n".join(f"{inner}  {what}" for inner, what in value.items())
            case list():
                words = "\n".join(map(str, value))
            case _:
                words = str(value)
        grid.add_row(Text(key, "bold"), Text(words))
    Console().print(grid)


def verify(name: PolicyName) -> None:
    """Compare every file of a policy with its SHA-256, and look for files that are missing or too many."""
    bundle = _library().open(name)
    count = len(bundle.manifest.files)
    invocation().show(
        {"policy": name, "hash": bundle.hash, "files": count}, f"{name} is whole: {count} files verified."
    )


def use(name: PolicyName) -> None:
    """Verify a policy and make it the one that tasks run. A running task goes on with its own."""
    bundle = _library().use(name)
    invocation().show({"policy": name, "hash": bundle.hash}, f"Tasks run {name} from now on.")


def remove(name: PolicyName) -> None:
    """Delete a policy from this station."""
    _library().remove(name)
    invocation().show({"policy": name}, f"{name} is removed.")


def _about(entry: "Entry") -> dict[str, Any]:
    it = entry.manifest
    return {
        "policy": entry.name,
        "in_use": entry.in_use,
        "hash": entry.hash or None,
        "type": it and it.type,
        "fps": it and it.fps,
        "chunk_size": it and it.chunk_size,
        "cameras": it.cameras if it else {},
        "tasks": list(it.tasks) if it else [],
        "description": it.description if it else "",
        "bytes": entry.bytes,
        "problem": entry.problem or None,
    }


def _mapping(words: list[str] | None) -> dict[str, str] | None:
    if not words:
        return None
    mapping: dict[str, str] = {}
    for word in words:
        view, equals, feature = word.partition("=")
        if not equals or not feature or view in mapping:
            raise BadInput(
                f"--camera {word!r} is not a view and a camera, or names a view twice.",
                "Write it as --camera OBS_IMAGE_1=observation.images.front.",
            )
        mapping[view] = feature
    return mapping


def _texts(tasks: list[str] | None) -> list[str]:
    """Other stations' task texts may be longer than those that are recorded here."""
    for task in tasks or ():
        if not task.strip() or len(task) > TASK_TEXT_MAX_CHARS or not task.isprintable():
            raise BadInput(f"--task {task[:60]!r} is not one line of text.", "Give the text as in the episodes.")
    return [task.strip() for task in tasks or ()]
