"""`check-config`: would a station with this configuration work on this machine, right now?"""

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agent.cli.command import Command, invocation
from agent.cli.finding import Finding, Level, show, worst
from agent.cli.locate import answers
from agent.cli.network import check_network
from agent.cli.ports import check_ports
from agent.errors import AgentError, BadInput

if TYPE_CHECKING:
    from agent.config import StationConfig

NETWORK_FILESYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "sshfs", "fuse.sshfs", "fuse.rclone", "ceph", "glusterfs", "afs"}
)
"""Where rename and flock do not promise what the journal and the lock rely on."""

OWN_ANSWER_S: Final = 1.0
"""Both answer within milliseconds unless they hang, and then their ports count as held."""


def register(app: typer.Typer) -> None:
    app.command("check-config", cls=Command, epilog="Example: so-agent check-config station.yaml --json")(check_config)


def check_config(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="The configuration; or use -c.")] = None,
) -> None:
    """Check a configuration file and what it names: ports, calibration, cameras, certificates, state folder."""
    if file:
        invocation().config = str(file)
    config = invocation().load()
    findings = check(config)
    ok = worst(findings) is not Level.ERROR
    if invocation().json:
        typer.echo(
            json.dumps({"ok": ok, **({} if ok else _error(findings)), "findings": [f.plain() for f in findings]})
        )
        if not ok:
            raise typer.Exit(BadInput.exit_code)
        return
    show(findings)
    if not ok:
        errors = sum(finding.is_error for finding in findings)
        raise BadInput(f"{errors} problem{'s' if errors > 1 else ''} in the configuration.", "See the lines marked ✗.")


def _error(findings: list[Finding]) -> dict[str, str]:
    errors = [finding for finding in findings if finding.is_error]
    return {
        "code": BadInput.code,
        "message": " ".join(f"{finding.name}: {finding.found}" for finding in errors),
        "hint": " ".join(dict.fromkeys(finding.remedy for finding in errors)),
    }


def check(config: "StationConfig") -> list[Finding]:
    """Everything that can be known without moving anything."""
    return [
        Finding("configuration", Level.OK, f"station {config.station}, {config.robot.model}, hash {config.hash}"),
        check_state_dir(config),
        *check_ports(config, own_pids(config)),
        *check_calibration(config),
        *check_cameras(config),
        *check_network(config),
    ]


def own_pids(config: "StationConfig") -> frozenset[int]:
    """The processes of this station, which hold its ports rightly: the running agent's children, or the arm
    process that an agent which was killed left holding the arm and that the next one takes over."""
    from agent.api.local import Client
    from agent.messages import ArmQuery, ArmReply, ArmReport
    from agent.transport import CommandClient

    pids: set[int] = set()
    if answers(config.paths.agent_socket):
        with contextlib.suppress(AgentError):
            status = Client(config.paths.agent_socket).call("status", timeout_s=OWN_ANSWER_S)
            pids |= {child["pid"] for child in (status.get("children") or {}).values() if child.get("pid")}
    if answers(config.paths.arm_ctl):
        client: CommandClient[ArmReport] = CommandClient(config.paths.arm_ctl, ArmReply)
        with contextlib.suppress(AgentError):
            pids.add(client.ask(ArmQuery(), OWN_ANSWER_S).pid)
    return frozenset(pids)


def check_state_dir(config: "StationConfig") -> Finding:
    from agent.robot.recording.free_space import GB, free_bytes

    folder = config.state_dir
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    name = "state_dir"
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            name,
            Level.ERROR,
            f"{folder} cannot be written by this user.",
            f"Change the owner of {existing}, or set another state_dir.",
        )
    kind = filesystem(existing)
    if kind in NETWORK_FILESYSTEMS:
        return Finding(
            name,
            Level.ERROR,
            f"{folder} lies on a network filesystem ({kind}).",
            "Use a folder on a local disk; copy finished datasets away instead.",
        )
    free_gb = free_bytes(config) / GB
    if free_gb < config.recording.min_free_gb:
        return Finding(
            name,
            Level.WARNING,
            f"{folder} has {free_gb:.1f} GB free; recording needs {config.recording.min_free_gb:g} GB.",
            "Free some space, or lower recording.min_free_gb.",
        )
    return Finding(name, Level.OK, f"{folder}, {free_gb:.0f} GB free ({kind})")


def filesystem(path: Path) -> str:
    """The type of the filesystem that holds `path`, from /proc/mounts; the longest mount point wins."""
    real = os.path.realpath(path)
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, this_kind, *_ = line.split()
        point = point.replace("\\040", " ")
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, this_kind
    return kind


def check_calibration(config: "StationConfig") -> list[Finding]:
    paths = config.paths
    files = {"follower": paths.follower_calibration, "leader": paths.leader_calibration}
    findings: list[Finding] = []
    for name, file in files.items():
        if file is None:
            continue
        if file.is_file():
            findings.append(Finding(f"{name} calibration", Level.OK, str(file)))
        else:
            remedy = f"Run `so-agent calibrate --arm {name} -c FILE`, or add --from FILE if lerobot-calibrate made one."
            findings.append(
                Finding(f"{name} calibration", Level.WARNING, f"There is no calibration at {file}.", remedy)
            )
    return findings


def check_cameras(config: "StationConfig") -> list[Finding]:
    from agent.robot.camera_types import is_known, known_types

    findings: list[Finding] = []
    for name, camera in config.cameras.items():
        where = f"cameras.{name}"
        if not is_known(camera.type):
            findings.append(
                Finding(
                    where,
                    Level.ERROR,
                    f"The type {camera.type!r} is no camera type that lerobot knows.",
                    f"Known are: {', '.join(sorted(known_types()))}.",
                )
            )
            continue
        device = camera.options.get("index_or_path")
        if isinstance(device, str) and device.startswith("/") and not Path(device).exists():
            findings.append(
                Finding(
                    where,
                    Level.WARNING,
                    f"{device} is not there.",
                    "Plug the camera in, or see `ls /dev/v4l/by-id/`. Until then nothing is recorded.",
                )
            )
            continue
        size = f"{camera.width}x{camera.height} at {camera.fps} fps"
        findings.append(Finding(where, Level.OK, f"{camera.view}, {camera.type}, {size}"))
    return findings
