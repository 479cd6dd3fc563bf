"""Let a policy learn from the station's own episodes. Imports neither torch nor lerobot."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from agent.cli.command import Command, invocation
from agent.errors import AgentError, BadInput, NotRunning, Refused
from agent.modes import WHAT_TO_DO, Mode

if TYPE_CHECKING:
    from agent.inference.bundle import Bundle
    from agent.inference.training.messages import Began, Event, Learnt, Stepped
    from agent.inference.training.supervise import Supervisor

SAVE_EVERY_S: Final = 60.0
LINES_OF_A_LOG: Final = 20
"""Of a whole training, where there is no terminal to draw a bar on."""

INTERRUPTED: Final = 130


def register(app: typer.Typer) -> None:
    app.command(
        "train",
        cls=Command,
        epilog="Example: so-agent train --policy reach --dataset kitchen --steps 2000 --name reach-kitchen",
    )(train)


def train(
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="The policy to begin with; default: the one in use.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Episodes of this station; default: recording.dataset.")
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="How many steps in all.")] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the new policy; default: policy and dataset.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="lora|expert|full", help="What changes; default: SmolVLA's action expert, all of other policies."
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="Rows a step; default: 8.")] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="R", help="Learning rate at its highest; default: lerobot's for the policy.")
    ] = None,
    hold_out: Annotated[
        int | None, typer.Option(metavar="N", help="Episodes that only judge; default: one of ten.")
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(metavar="keep|dataset", help="Mean and spread of the joints; default: keep the policy's."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of all random numbers; default: 0.")] = None,
    save_every_s: Annotated[
        float, typer.Option(min=1, metavar="S", help="A kill loses at most so many seconds.")
    ] = SAVE_EVERY_S,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of the computer's cores; default: all but one.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with one that was interrupted, with its own settings.")
    ] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Even while the arm is being used.")] = False,
) -> None:
    """Train a policy further on episodes of this station. The result is a new policy; the old one stays."""
    from agent.inference.training.plan import Wish
    from agent.inference.training.supervise import Share, begin, go_on

    if device not in ("auto", "cpu", "cuda"):
        raise BadInput(f"There is no --device {device}.", "Give auto, cpu or cuda.")
    config = invocation().load()
    console = Console(stderr=True, quiet=invocation().json, soft_wrap=True)
    wish = Wish(policy, dataset, steps, name, method, batch, rate, seed, statistics, hold_out)
    share = Share(device, threads or max(1, len(os.sched_getaffinity(0)) - 1), save_every_s)
    if not anyway:
        _ask_the_agent(console)
    supervisor = (go_on if resume else begin)(config, wish, share)
    with contextlib.nullcontext() if anyway else _making_way(supervisor, console):
        learnt = _listen(supervisor, console)
    if learnt is None:
        raise typer.Exit(_stopped(supervisor))
    _publish(supervisor, learnt, console)


def _ask_the_agent(console: Console) -> None:
    """Raises Refused while somebody moves the arm."""
    from agent.cli.arm_in_use import in_use

    try:
        status = invocation().call("status")
    except NotRunning:
        return
    mode = Mode(status["mode"])
    if in_use(status):
        raise Refused(
            f"The arm is in mode {mode}: {status['reason']}.",
            f"{WHAT_TO_DO[mode]} Or give --anyway to train all the same.",
        )
    console.print(f"The agent runs, and the arm is in mode {mode}. Training takes only time that nothing else wants.")


@contextlib.contextmanager
def _making_way(supervisor: "Supervisor", console: Console) -> Iterator[None]:
    """The training stands still while the arm is used, whoever starts that and however late."""
    from agent.cli.arm_in_use import ArmInUse

    def changed(why: str | None) -> None:
        if why:
            supervisor.freeze()
            console.print(f"The training stands still: {why}.")
        else:
            supervisor.thaw()
            console.print("The arm rests: the training goes on.")

    watch = ArmInUse(invocation().agent_socket(), changed)
    watch.start()
    try:
        yield
    finally:
        watch.close()
        supervisor.thaw()


def _listen(supervisor: "Supervisor", console: Console) -> "Learnt | None":
    with _signals(supervisor, console), _shown(supervisor, console) as hear:
        try:
            return supervisor.run(hear)
        except AgentError:
            if not supervisor.saved:
                supervisor.forget()
            raise


@contextlib.contextmanager
def _signals(supervisor: "Supervisor", console: Console) -> Iterator[None]:
    """The first one lets it save and end, the second one does not wait."""
    asked = False

    def stop(*_: object) -> None:
        nonlocal asked
        if asked:
            supervisor.kill()
            return
        asked = True
        console.print("Saving after the present step ...")
        supervisor.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _shown(supervisor: "Supervisor", console: Console) -> "Iterator[Callable[[Event], None]]":
    """What to do with what the process says: lines of JSON, a bar on a terminal, or some lines of a log."""
    if invocation().json:
        yield lambda event: typer.echo(msgspec.json.encode(event).decode())
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[steps_s]}"), TextColumn("{task.fields[left]}"),
    )  # fmt: skip
    console.print("Loading ...")
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(supervisor.plan.name, total=supervisor.plan.steps, loss="-", steps_s="", left="")
        yield _Shown(console, bar, task)


class _Shown:
    """Events, for people."""

    def __init__(self, console: Console, bar: Progress, task: TaskID) -> None:
        self._console, self._bar, self._task = console, bar, task
        self._next_line = 0

    def __call__(self, event: "Event") -> None:
        from agent.inference.training.messages import Began, Stepped, Validated

        match event:
            case Began():
                self._began(event)
            case Validated():
                self._console.print(f"Loss on held-out episodes at step {event.step}: {event.loss:.4f}")
            case Stepped():
                self._stepped(event)

    def _began(self, event: "Began") -> None:
        whence = f"Going on at step {event.step}." if event.step else "Loaded."
        self._console.print(
            f"{whence} {event.trained:,} of {event.parameters:,} parameters learn from {event.rows:,} rows, "
            f"{event.held_out} episodes held out; {event.device}, {event.threads} threads."
        )
        self._bar.update(self._task, completed=event.step)

    def _stepped(self, event: "Stepped") -> None:
        pace = f"{event.steps_s:.1f} steps/s" if event.steps_s >= 1 else f"{1 / event.steps_s:.1f} s a step"
        left = f"{_duration(event.left_s)} left"
        self._bar.update(self._task, completed=event.step, loss=f"{event.loss:.4f}", steps_s=pace, left=left)
        if not self._console.is_terminal and (event.step >= self._next_line or event.step == event.steps):
            self._console.print(f"step {event.step} of {event.steps}, loss {event.loss:.4f}, {pace}, {left}")
            self._next_line = event.step + max(1, event.steps // LINES_OF_A_LOG)


def _stopped(supervisor: "Supervisor") -> int:
    """Say how to go on."""
    if supervisor.saved:
        words = f"Saved. Go on with `{supervisor.how_to_go_on}`."
        result = {"stopped": True, "resume": supervisor.how_to_go_on}
    else:
        supervisor.forget()
        words, result = "Stopped before the first step; nothing was kept.", {"stopped": True, "resume": None}
    if invocation().json:
        typer.echo(json.dumps({"ok": False, "code": "stopped", **result}))
    else:
        typer.echo(words)
    return INTERRUPTED


def _publish(supervisor: "Supervisor", learnt: "Learnt", console: Console) -> None:
    def try_it(bundle: "Bundle") -> None:
        from agent.inference.trial import try_out

        console.print("Copied and verified. Loading it and predicting once ...")
        try_out(bundle)

    bundle = supervisor.publish(learnt, try_it)
    result = {
        "policy": bundle.manifest.name,
        "hash": bundle.hash,
        "description": bundle.manifest.description,
        "folder": str(supervisor.work),
        **msgspec.structs.asdict(learnt),
    }
    if invocation().json:
        invocation().show(result, "")
        return
    Console().print(_table(learnt))
    typer.echo(f"{bundle.manifest.name} ({bundle.hash}) is a policy of this station now. Its curve: {supervisor.work}.")
    if learnt.before is not None and learnt.after is not None and learnt.after >= learnt.before:
        typer.echo("On episodes that it did not learn from it is no better than before: try it with care.", err=True)
    typer.echo(f"Choose it with `so-agent policy use {bundle.manifest.name}`.")


def _table(learnt: "Learnt") -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("loss", "before", "after", "change"):
        table.add_column(column, justify="left" if column == "loss" else "right")
    rows = [("training", learnt.first_loss, learnt.last_loss)]
    if learnt.before is not None and learnt.after is not None:
        rows.insert(0, ("held-out episodes", learnt.before, learnt.after))
    for what, before, after in rows:
        table.add_row(what, f"{before:.4f}", f"{after:.4f}", f"{100 * (after / before - 1):+.0f} %")
    table.caption = f"{learnt.steps} steps in {_duration(learnt.seconds)}"
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
