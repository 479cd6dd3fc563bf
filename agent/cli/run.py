"""Start things: the agent, the virtual station, the demo."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from agent import __version__
from agent.cli.command import Command, invocation
from agent.errors import BadInput

INJECT_EXAMPLE: Final = """Example: so-agent inject '{"drop": {"servo": 3, "count": 1}}' -c virtual.yaml"""


def register(app: typer.Typer) -> None:
    app.command("run", cls=Command, epilog="Example: so-agent run -c configs/so101/virtual.yaml")(run)
    app.command(
        "virtual-station", cls=Command, epilog="Example: so-agent virtual-station -c configs/so101/virtual.yaml"
    )(virtual_station)
    app.command("inject", cls=Command, epilog=INJECT_EXAMPLE)(inject)
    app.command("demo", cls=Command, epilog="Example: so-agent demo --episodes 2 --episode-s 8")(demo)
    app.command("version", cls=Command, epilog="Example: so-agent version --json")(version)


def run(
    wait: Annotated[
        bool, typer.Option("--wait", help="Start although a serial port is missing, and wait until it appears.")
    ] = False,
) -> None:
    """Run the agent of one station in this terminal until Ctrl-C; the arm is parked before it ends."""
    from agent import daemon
    from agent.cli.check import check_cameras, own_pids
    from agent.cli.ports import check_ports

    config = invocation().load()
    findings = [*check_ports(config, own_pids(config)), *check_cameras(config)]
    problems = [finding for finding in findings if finding.is_error and not (wait and finding.code == "missing")]
    if problems:
        remedies = list(dict.fromkeys(problem.remedy for problem in problems))
        if any(problem.code == "missing" for problem in problems):
            remedies.append("Or start with --wait, which waits until it appears.")
        raise BadInput(
            " ".join(f"{problem.name}: {problem.found}" for problem in problems),
            " ".join(remedies),
        )
    daemon.run(config)


def virtual_station(
    seed: Annotated[int, typer.Option(help="Of the table and the operator.")] = 0,
    stamp: Annotated[bool, typer.Option("--stamp", help="Draw goal count and time into every frame.")] = False,
    no_cameras: Annotated[bool, typer.Option("--no-cameras", help="Arms only.")] = False,
    pace: Annotated[bool, typer.Option("--pace", help="Let replies take as long as at 1 Mbaud.")] = False,
    wire_log: Annotated[Path | None, typer.Option(metavar="FILE", help="Append every goal on the wire.")] = None,
    disc: Annotated[
        list[str] | None, typer.Option(metavar="COLOUR", help="A disc on the table; may be given again.")
    ] = None,
    cube: Annotated[
        list[str] | None, typer.Option(metavar="COLOUR", help="A cube on the table; may be given again.")
    ] = None,
) -> None:
    """Run the virtual station: two arms on pseudo-terminals, cameras, a table, an operator. Ends with Ctrl-C."""
    invocation().load()
    options = ["-c", str(invocation().config), "--seed", str(seed)]
    options += [flag for flag, on in (("--stamp", stamp), ("--no-cameras", no_cameras), ("--pace", pace)) if on]
    options += ["--wire-log", str(wire_log)] if wire_log else []
    options += [f"--disc={colour}" for colour in disc or ()] + [f"--cube={colour}" for colour in cube or ()]
    # A program of its own: the agent never imports it, and this process becomes it.
    os.execv(sys.executable, [sys.executable, "-m", "agent.virtual", *options])  # noqa: S606


def inject(
    request: Annotated[str, typer.Argument(metavar="JSON", help="What to do; see docs/virtual-station.md.")],
) -> None:
    """Make the virtual station fail in one way, or ask it for its state. Never touches hardware."""
    from agent.virtual.client import ask

    try:
        payload = json.loads(request)
    except ValueError as error:
        raise BadInput(f"Not JSON: {error}.", INJECT_EXAMPLE) from error
    if not isinstance(payload, dict):
        raise BadInput(f"Expected a JSON object, found {request:.40}.", INJECT_EXAMPLE)
    answer = ask(invocation().virtual_socket(), payload)
    answer.pop("ok", None)
    invocation().show(answer, json.dumps(answer, indent=2) if answer else "Done.")


def demo(
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("demo-output"),
    episodes: Annotated[int, typer.Option(min=1, max=100, help="How many to record.")] = 2,
    episode_s: Annotated[float, typer.Option(min=1, max=600, help="Length of one in seconds.")] = 8.0,
    model: Annotated[str, typer.Option(help="so100 or so101.")] = "so101",
) -> None:
    """Teleoperate and record a few episodes on the virtual station, from start to finish, and show what came out."""
    from agent.cli.demo import Demo

    if model not in ("so100", "so101"):
        raise BadInput(f"There is no virtual {model}.", "Use --model so100 or --model so101.")
    with Demo(folder, model, quiet=invocation().json) as running:
        running.record(episodes, episode_s)
        running.by_itself()
        running.finish()
    if invocation().json:
        invocation().show(running.outcome(), "")
    else:
        running.print_outcome()


def version() -> None:
    """Print the version of the agent."""
    invocation().show({"version": __version__}, f"so-agent {__version__}")
