"""`so-agent secure`: what is done about the arm when its agent is gone."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from agent.cli.command import Command, invocation
from agent.cli.locate import answers
from agent.errors import AgentError, BadInput, DeviceFault, NotRunning, Refused

if TYPE_CHECKING:
    from agent.config import StationConfig
    from agent.messages import ArmReport

ANSWER_S: Final = 1.0
"""An arm process answers within a tick and a bus time-out; after a second it hangs."""

START_S: Final = 60.0
"""lerobot's imports take 5 s, and up to a minute on a small board with a cold disk."""

CONNECT_S: Final = 3.0
"""An arm that is plugged in and has power is connected within 0.2 s."""

PARK_S: Final = 20.0
"""The longest way to the park pose takes 8 s at 30 degrees a second; a slower configured speed releases half way."""

LEFTOVERS_S: Final = 5.0
"""For a recorder to close its journal. What it loses then is repaired by the next one."""

LOOK_S: Final = 0.05

FROM_SYSTEMD: Final = "SERVICE_RESULT"
"""Set for ExecStopPost= only. Anywhere else, everything in our control group may be a person's whole session."""

CONTROL_SUBGROUP: Final = "/.control"
"""Where systemd runs ExecStopPost= of a service with a delegated control group."""

STOPPING: Final = "stopping"
"""A file in the socket folder that the unit's ExecStop= makes: the service was told to stop, no agent will follow."""


def register(app: typer.Typer) -> None:
    app.command("secure", cls=Command, epilog="Example: so-agent secure --park -c /etc/so-agent/kitchen.yaml")(secure)


def secure(
    park: Annotated[bool, typer.Option("--park", help="No agent will follow: park the arm and release it.")] = False,
    guard: Annotated[
        bool, typer.Option("--guard", help="Hold the arm until an agent takes it over, or until it is time to park.")
    ] = False,
    service: Annotated[
        bool,
        typer.Option("--service", help="As ExecStopPost of the unit: end what the agent left, park if told to stop."),
    ] = False,
) -> None:
    """Leave the arm safe after its agent is gone. Without options it is not moved: a blocked joint stops pushing."""
    from agent.telemetry import configure

    if service and FROM_SYSTEMD not in os.environ:
        raise BadInput("--service is for the unit's ExecStopPost= alone.", "Leave it out.")
    config = invocation().load()
    configure(config.logging, process="secure")
    if answers(config.paths.agent_socket):
        raise Refused("The agent runs and minds the arm.", "Use `so-agent park` or `so-agent release`.")
    if guard:
        from agent.robot.arm import main as become_arm_process

        become_arm_process(config)
        return
    report = _arm_process(config)
    result = _minded(report) if report else _ease(config)  # before anything else: somebody may be caught
    if service:
        _end_leftovers(report.pid if report else None)
        told = config.paths.run / STOPPING
        park = park or told.exists()
        told.unlink(missing_ok=True)
    if park and report:
        result = _leave(config, report.pid)
    elif park and result["under_torque"]:
        result = _park_without_agent(config)
    invocation().show(result, _sentence(result))


def _sentence(result: dict[str, Any]) -> str:
    match result["arm"]:
        case "minded":
            return f"The arm process {result['pid']} still minds the arm ({result['drive']})."
        case "left":
            return f"The arm was brought to rest: {result['reason']}."
        case "limp":
            return "The arm is not under torque."
        case "absent":
            return f"The arm cannot be reached: {result['reason']}"
        case _:
            eased = f"; {', '.join(result['eased'])} stopped pushing" if result["eased"] else ""
            return f"The servos hold the arm by themselves{eased}."


def _arm_process(config: "StationConfig") -> "ArmReport | None":
    """The report of an arm process that outlived its agent. One that does not answer is ended: it hangs."""
    if not answers(config.paths.arm_ctl):
        return None
    report = _ask(config)
    if report is None and (pid := _owner(config.paths.arm_ctl)):
        from agent.telemetry import logger

        logger.error("the arm process hangs, ending it", pid=pid)
        _kill(pid, signal.SIGKILL)
        _wait_until(lambda: not _alive(pid), ANSWER_S)
    return report


def _ask(config: "StationConfig", command: Any = None) -> "ArmReport | None":
    from agent.messages import ArmQuery, ArmReply
    from agent.transport import CommandClient

    client: CommandClient[ArmReport] = CommandClient(config.paths.arm_ctl, ArmReply)
    try:
        return client.ask(command or ArmQuery(), ANSWER_S)
    except NotRunning:
        return None


def _owner(path: Path) -> int | None:
    """The process that listens on a Unix socket, as the kernel knows it."""
    with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(OSError):
        peer.connect(str(path))
        pid, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid) or None
    return None


def _leave(config: "StationConfig", pid: int) -> dict[str, Any]:
    """Park, release, exit; by the arm process itself, which knows how."""
    from agent.messages import ArmShutdown

    report = _ask(config, ArmShutdown("the agent is gone and no other will follow"))
    reason = report.reason if report else "it did not answer"
    if not _wait_until(lambda: not _alive(pid), PARK_S):
        _kill(pid, signal.SIGKILL)
        raise DeviceFault("The arm process did not end in time; the arm is still held.", "Hold it, cut its power.")
    return {"arm": "left", "reason": reason}


def _minded(report: "ArmReport") -> dict[str, Any]:
    return {"arm": "minded", "pid": report.pid, "drive": report.drive}


def _ease(config: "StationConfig") -> dict[str, Any]:
    from agent.robot.rescue import ease

    try:
        found = ease(config.robot.follower.port, config.robot.bus_timeout_ms)
    except AgentError as error:
        return {"arm": "absent", "reason": str(error), "under_torque": [], "eased": []}
    state = "held" if found.under_torque else "limp"
    return {"arm": state, "under_torque": list(found.under_torque), "eased": list(found.eased)}


def _park_without_agent(config: "StationConfig") -> dict[str, Any]:
    """An arm process for this one purpose: it adopts the arm as it stands, parks and releases it."""
    guard = subprocess.Popen(
        [sys.executable, "-m", "agent.cli", "secure", "--guard", "-c", str(invocation().config)],
        stdin=subprocess.DEVNULL, stdout=sys.stderr,
    )  # fmt: skip
    try:
        if not _wait_until(lambda: answers(config.paths.arm_ctl) or guard.poll() is not None, START_S):
            raise DeviceFault(
                "The arm process did not start in time; the arm is still held.", "Hold it, cut its power."
            )
        _wait_until(lambda: (report := _ask(config)) is not None and report.bus_connected, CONNECT_S)
        return _leave(config, guard.pid)
    finally:
        if guard.poll() is None:
            guard.kill()
        guard.wait()


def _end_leftovers(arm_pid: int | None) -> None:
    """Whatever else the agent left running in its control group is ended: it would be in its successor's way."""
    spared = {os.getpid(), os.getppid(), arm_pid}
    left = [pid for pid in _same_group() if pid not in spared]
    for pid in left:
        _kill(pid, signal.SIGTERM)
    if not _wait_until(lambda: not any(_alive(pid) for pid in left), LEFTOVERS_S):
        for pid in left:
            _kill(pid, signal.SIGKILL)


def _same_group() -> Iterator[int]:
    """Every process of this service, whatever subgroup of it."""
    mine = _group(Path("/proc/self/cgroup")).removesuffix(CONTROL_SUBGROUP)
    if not mine.endswith(".service"):
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended, or is somebody else's
                group = _group(entry / "cgroup")
                if group == mine or group.startswith(f"{mine}/"):
                    yield int(entry.name)


def _group(processes: Path) -> str:
    lines = processes.read_text().splitlines()
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")


def _alive(pid: int) -> bool:
    """Whether any thread of it is left. The first one may be a zombie while another still has the port open."""
    try:
        ended = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        return not ended or len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _wait_until(done: Any, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True
