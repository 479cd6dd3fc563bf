"""`so-agent calibrate`: a dialogue for people, `--from` and `--check` for programs."""

import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from agent.cli.calibrator import FULL_TURN, MIN_TRAVEL_COUNTS, Calibrator
from agent.cli.command import Command, invocation
from agent.cli.locate import answers
from agent.errors import BadInput, DeviceFault, Refused
from agent.messages import JOINTS
from agent.robot.calibration import Match

LOOK_S: Final = 0.05
"""Between two looks at the joints while a person moves them; fast enough not to miss an end stop."""


class Arm(StrEnum):
    FOLLOWER = "follower"
    LEADER = "leader"


def register(app: typer.Typer) -> None:
    app.command(
        "calibrate",
        cls=Command,
        epilog="Example: so-agent calibrate --arm leader -c station.yaml",
    )(calibrate)


def calibrate(
    arm: Annotated[Arm, typer.Option(help="Which arm.")] = Arm.FOLLOWER,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Take this file, e.g. one of lerobot-calibrate.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only compare the file with the servos.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="With --from: also where the servos hold another arm's values.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before torque goes off.")] = False,
) -> None:
    """Calibrate an arm: where the middle of each joint is and how far it goes. The agent must not run."""
    if check and source:
        raise BadInput("--check and --from exclude each other.", "Give one of them.")
    if not (check or source) and not sys.stdin.isatty():
        raise BadInput("Calibrating is a dialogue and needs a terminal.", "Programs use --from FILE or --check.")
    with _servos(arm) as calibrator:
        if check:
            _check(calibrator)
            return
        if calibrator.under_torque() and not yes:
            if not sys.stdin.isatty():
                raise BadInput("The arm is under torque and would drop.", "Hold it, then add --yes.")
            typer.confirm("The arm is under torque and will drop. Is somebody holding it?", abort=True)
        if source:
            before = calibrator.adopt(source.expanduser(), overwrite)
            done = "The servos held it already" if before.match is Match.SAME else "It was written to the servos"
            invocation().show(
                {"arm": arm, "file": str(calibrator.path), "before": before.match},
                f"{done}; the file is {calibrator.path}.",
            )
            return
        _dialogue(calibrator, arm)


@contextmanager
def _servos(arm: Arm) -> Iterator[Calibrator]:
    """The arm's servos for ourselves. Raises Refused while the agent runs, BadInput when the port is not free."""
    config = invocation().load()
    if answers(config.paths.agent_socket):
        raise Refused(
            "Not possible while the agent runs: it owns the arm.", "Stop it first, then calibrate, then start it again."
        )
    if arm is Arm.LEADER and config.robot.leader is None:
        raise BadInput("This station has no leader arm.", "Add robot.leader to the configuration.")
    if sys.stderr.isatty():
        typer.echo("Loading the servo driver …", err=True)
    from agent.robot.bus import ServoBus  # lerobot: some seconds, and only here

    bus = ServoBus(config, arm.value)
    bus.open()
    try:
        yield Calibrator(bus, bus.calibration_path)
    finally:
        bus.close()


def _check(calibrator: Calibrator) -> None:
    report = calibrator.check()
    if report.match is not Match.SAME:
        raise BadInput("\n".join([report.problem, *report.differences]), report.hint)
    invocation().show(
        {"match": report.match, "file": str(calibrator.path)}, f"The servos agree with {calibrator.path}."
    )


def _dialogue(calibrator: Calibrator, arm: Arm) -> None:
    console = Console(stderr=True)
    calibrator.release()
    console.print(f"[bold]Calibrating the {arm}.[/] Torque is off; move it by hand.\n")
    console.print("1. Move every joint to the [bold]middle[/] of its travel, gripper half open.")
    typer.prompt("   Then press Enter", default="", show_default=False, prompt_suffix=" ", err=True)
    calibrator.set_middle()
    console.print(f"\n2. Move each joint but {FULL_TURN} slowly from stop to stop. Press Enter when all are done.")
    lowest, highest = _watch_ranges(calibrator, console)
    calibrator.finish(lowest, highest)
    report = calibrator.check()
    if report.match is not Match.SAME:
        raise DeviceFault(report.problem, "Run it again; if it stays, a servo does not keep what it is told.")
    invocation().show(
        {"arm": arm, "file": str(calibrator.path)}, f"Written to the servos, read back, and kept in {calibrator.path}."
    )


def _watch_ranges(calibrator: Calibrator, console: Console) -> tuple[dict[str, int], dict[str, int]]:
    """The lowest and highest position of each joint until Enter is pressed."""
    lowest = calibrator.positions()
    highest = dict(lowest)
    with Live(console=console, transient=True, refresh_per_second=10) as live:
        while not select.select([sys.stdin], [], [], LOOK_S)[0]:
            try:
                now = calibrator.positions()
            except DeviceFault:
                continue  # one lost reply is one missing look; a lost port raises at the next write
            lowest = {name: min(lowest[name], now[name]) for name in JOINTS}
            highest = {name: max(highest[name], now[name]) for name in JOINTS}
            live.update(_ranges(lowest, now, highest))
    sys.stdin.readline()
    return lowest, highest


def _ranges(lowest: dict[str, int], now: dict[str, int], highest: dict[str, int]) -> Table:
    table = Table(box=None)
    for title in ("joint", "lowest", "now", "highest", ""):
        table.add_column(title, justify="left" if title in ("joint", "") else "right")
    for name in JOINTS:
        moved = name == FULL_TURN or highest[name] - lowest[name] >= MIN_TRAVEL_COUNTS
        mark = "[green]✓[/]" if moved else "[yellow]move me[/]"
        table.add_row(name, str(lowest[name]), str(now[name]), str(highest[name]), mark)
    return table
