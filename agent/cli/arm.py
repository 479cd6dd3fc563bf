"""Commands that move, hold or stop the arm."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from agent.cli.command import Command, group, invocation
from agent.cli.locate import AGENT_SOCKET, answers
from agent.errors import AgentError, BadInput, DeviceFault, NotRunning

ESTOP_ANSWER_S: Final = 1.0
"""The arm answers within one tick plus one bus time-out, 50 ms; after a second it is not going to."""

ESTOP_VERIFY_S: Final = 1.0
"""For the read-back of all servos, which the arm does in the ticks after the stop."""

DAEMON_TOLD_S: Final = 0.5
"""The agent is told only for its records; one that hangs must not keep a person waiting."""

POWER_OFF: Final = "Switch off the arm's power supply now; then look at the log."


def register(app: typer.Typer) -> None:
    teleop = group("teleop", "Follow the leader arm.")
    teleop.command("start", cls=Command, epilog="Example: so-agent teleop start")(teleop_start)
    teleop.command("stop", cls=Command, epilog="Example: so-agent teleop stop")(teleop_stop)
    app.add_typer(teleop)
    for name, function in (("hold", hold), ("park", park), ("reset", reset)):
        app.command(name, cls=Command, epilog=f"Example: so-agent {name}")(function)
    app.command("release", cls=Command, epilog="Example: so-agent release --yes")(release)
    app.command("estop", cls=Command, epilog='Example: so-agent estop --cause "hand in the way"')(estop)


def _do(verb: str) -> None:
    """Ask for something that changes the mode, and say which mode that led to."""
    result = invocation().call(verb)
    invocation().show(result, f"{result['mode']}: {result['reason']}")


def teleop_start() -> None:
    """Move the follower slowly onto the leader's pose, then follow it."""
    _do("teleop.start")


def teleop_stop() -> None:
    """Stop following; the arm holds where it is. A running recording is committed."""
    _do("teleop.stop")


def hold() -> None:
    """Stop moving and keep torque on."""
    _do("hold")


def park() -> None:
    """Move slowly to the park pose, then switch torque off."""
    _do("park")


def reset() -> None:
    """Clear a latched emergency stop or a fault, after the reason for it is gone."""
    _do("reset")


def release(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; somebody holds the arm.")] = False,
) -> None:
    """Switch torque off right here. The arm DROPS: hold it, or use `so-agent park` instead."""
    if not yes:
        if not sys.stdin.isatty():
            raise BadInput("Releasing drops the arm and was not confirmed.", "Hold the arm, then add --yes.")
        typer.confirm("Torque goes off and the arm drops. Is somebody holding it?", abort=True)
    result = invocation().call("release")
    if result.get("torque_on"):
        raise DeviceFault("Some servos still report torque.", "Run it again, or switch off the arm's power supply.")
    invocation().show(result, f"Released: torque is off. {result['mode']}: {result['reason']}")


def estop(
    cause: Annotated[str, typer.Option(help="Kept in the log and shown until the reset.")] = "e-stop from the terminal",
) -> None:
    """Emergency stop: goes straight to the arm process, also when the agent hangs. Latched until `so-agent reset`.

    This is a software stop and no substitute for the switch of the arm's power supply."""
    sockets = invocation().arm_sockets()
    if not sockets:
        raise NotRunning("No arm process was found, so nothing was stopped.", POWER_OFF)
    failures: list[AgentError] = []
    results: list[dict[str, Any]] = []
    for path in sockets:
        try:
            results.append(_stop_arm(path, cause))
        except AgentError as error:
            failures.append(error)
    for path in sockets:
        _tell_agent(path.with_name(AGENT_SOCKET), cause)
    if failures:
        raise failures[0]
    sentences = [
        f"Stopped in {result['took_ms']:.0f} ms, read back from the servos. Clear it with `so-agent reset`."
        for result in results
    ]
    invocation().show({"stopped": results}, "\n".join(sentences))


def _stop_arm(path: Path, cause: str) -> dict[str, Any]:
    """Stop one arm and wait until the servos were read back. Raises NotRunning or DeviceFault."""
    from agent.messages import ArmEstop, ArmQuery, ArmReply, ArmReport
    from agent.transport import CommandClient

    if not answers(path):
        raise NotRunning(f"No arm process listens on {path}. The arm was NOT stopped.", POWER_OFF)
    client: CommandClient[ArmReport] = CommandClient(path, ArmReply)
    began = time.monotonic()
    try:
        report = client.ask(ArmEstop(cause), ESTOP_ANSWER_S)
        while report.estop_verified is not True and time.monotonic() - began < ESTOP_VERIFY_S:
            time.sleep(0.01)
            report = client.ask(ArmQuery(), ESTOP_ANSWER_S)
    except NotRunning as error:
        raise NotRunning(f"{error.message} The arm was NOT stopped.", POWER_OFF) from error
    took_ms = (time.monotonic() - began) * 1000
    if report.estop_verified is not True:
        raise DeviceFault(
            f"The stop was sent, but the servos did not confirm it within {took_ms:.0f} ms: {report.reason}.",
            POWER_OFF,
        )
    return {"socket": str(path), "verified": True, "took_ms": round(took_ms, 1), "reason": report.reason}


def _tell_agent(path: Path, cause: str) -> None:
    from agent.api.local import Client

    try:
        Client(path).call("estop", {"cause": cause}, DAEMON_TOLD_S)
    except AgentError as error:
        typer.echo(f"The agent itself was not told: {error.message}", err=True)
