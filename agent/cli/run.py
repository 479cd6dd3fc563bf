"""Start things: the agent, the virtual station, the demo."""

import os
import sys
from typing import Annotated

import typer

from agent import __version__
from agent.cli.command import Command, invocation
from agent.errors import BadInput


def register(app: typer.Typer) -> None:
    app.command("run", cls=Command, epilog="Example: so-agent run -c configs/so101/virtual.yaml")(run)
    app.command(
        "virtual-station", cls=Command, epilog="Example: so-agent virtual-station -c configs/so101/virtual.yaml"
    )(virtual_station)
    app.command("inject", cls=Command, epilog=INJECT_EXAMPLE)(inject)
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


def virtual_station() -> None:
    """Run the virtual station: two arms on pseudo-terminals, cameras, a table, an operator. Ends with Ctrl-C."""
    config = invocation().config
    invocation().load()
    # A program of its own: the agent never imports it, and this process becomes it.
    os.execv(sys.executable, [sys.executable, "-m", "agent.virtual", "-c", str(config)])  # noqa: S606


INJECT_EXAMPLE = """Example: so-agent inject '{"fault": "drop", "arm": "follower"}' -c configs/so101/virtual.yaml"""


def inject(
    fault: Annotated[str, typer.Argument(metavar="JSON", help="One fault or command of the virtual station.")],
) -> None:
    """Make the virtual station fail in one way, or do something else it can do. Never touches hardware."""


def version() -> None:
    """Print the version of the agent."""
    invocation().show({"version": __version__}, f"so-agent {__version__}")
