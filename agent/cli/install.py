"""Make a station, or the server of a fleet, a service of this machine's systemd; and take that back."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from agent.cli.command import Command, invocation
from agent.cli.locate import answers
from agent.errors import AgentError, BadInput, Refused

if TYPE_CHECKING:
    from agent.config import StationConfig
    from agent.install.plan import Machine, Plan

INSTALL_EXAMPLE: Final = "Example: sudo .venv/bin/so-agent install -c my-station.yaml"
UNINSTALL_EXAMPLE: Final = "Example: sudo .venv/bin/so-agent uninstall --station kitchen"

MARKS: Final = {"same": "·", "create": "+", "change": "~", "remove": "-", "run": ">"}

Root = Annotated[
    Path,
    typer.Option("--root", metavar="DIR", help="The file system of an image to install into, instead of this one."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


def register(app: typer.Typer) -> None:
    app.command("install", cls=Command, epilog=INSTALL_EXAMPLE)(install)
    app.command("uninstall", cls=Command, epilog=UNINSTALL_EXAMPLE)(uninstall)


def install(
    fleet: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Serve this fleet, instead of installing the station of -c FILE.")
    ] = None,
    environment: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The Python environment of the service; default: the one that runs this."),
    ] = None,
    start: Annotated[bool, typer.Option(help="Start it now.")] = True,
    root: Root = Path("/"),
    yes: Yes = False,
) -> None:
    """Make the station of -c FILE a service: it starts at boot, and again when it fails. Shows a plan first."""
    from agent.install.environment import Environment
    from agent.install.plan import install_fleet, install_station

    machine = _machine(root)
    runs_in = Environment.at(environment) if environment else Environment.here()
    if fleet:
        _carry_out(install_fleet(machine, runs_in, fleet.expanduser().absolute(), start), machine, yes, "Installed.")
        return
    config = invocation().load()
    if start and machine.is_this_one:
        _require_free_ports(config)
    file = Path(str(invocation().config)).expanduser()
    plan = install_station(machine, runs_in, config, file, start)
    _carry_out(plan, machine, yes, f"Installed. `systemctl status so-agent@{config.station}` shows how it is.")


def uninstall(
    station: Annotated[str | None, typer.Option(metavar="NAME", help="Only this station; default: everything.")] = None,
    root: Root = Path("/"),
    yes: Yes = False,
) -> None:
    """Stop and remove the services. The arm is parked and released; configurations, secrets and episodes stay."""
    from agent.install.plan import uninstall as plan_to_uninstall

    machine = _machine(root)
    _carry_out(plan_to_uninstall(machine, station), machine, yes, "Uninstalled.")


def _require_free_ports(config: "StationConfig") -> None:
    """An agent in somebody's terminal would keep the service from its arm."""
    from agent.install.station_file import SOCKETS

    if config.paths.run != SOCKETS / config.station and answers(config.paths.agent_socket):
        raise Refused(
            "The agent of this station runs in a terminal, and has the arm.",
            "End it there with Ctrl-C, which parks the arm; or add --no-start.",
        )


def _machine(root: Path) -> "Machine":
    from agent.install.plan import Machine

    root = root.expanduser().resolve()
    if not root.is_dir():
        raise BadInput(f"There is no folder {root}.", "Give the folder in which the image is mounted.")
    return Machine(root)


def _carry_out(plan: "Plan", machine: "Machine", yes: bool, done: str) -> None:
    """Show the plan; then do it when that is wanted."""
    rows = [{"state": str(step.state()), "subject": step.subject, "why": step.why} for step in plan.steps]
    to_do = plan.open
    if not invocation().json:
        _show(rows, plan.notes)
    if to_do and not yes and sys.stdin.isatty() and not invocation().json:
        typer.confirm("Do this?", abort=True)
        yes = True
    if to_do and yes:
        if machine.is_this_one and os.geteuid() != 0:
            raise BadInput("Only root can do this.", "Run it again with sudo.")
        for step in to_do:
            _apply(step)
    result: dict[str, Any] = {"applied": bool(to_do and yes), "plan": rows, "notes": list(plan.notes)}
    sentence = (
        done if to_do and yes else "Nothing to do." if not to_do else "Nothing was changed. Add --yes to do this."
    )
    invocation().show(result, sentence)


def _apply(step: Any) -> None:
    try:
        step.apply()
    except AgentError as error:
        raise type(error)(f"{step.subject}: {error.message}", error.hint) from error


def _show(rows: list[dict[str, str]], notes: tuple[str, ...]) -> None:
    for row in rows:
        quiet = "bright_black" if row["state"] == "same" else None
        typer.secho(f"{MARKS[row['state']]} {row['subject']}", nl=False, fg=quiet)
        typer.secho(f"   {row['why']}" if row["why"] else "", fg="bright_black")
    for note in notes:
        typer.secho(f"! {note}", fg="yellow")
