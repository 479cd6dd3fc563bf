"""`so-agent doctor`: is this machine fit for a station, and what to do where it is not."""

import ctypes
import grp
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from agent.cli.check import check_calibration, check_cameras, check_state_dir, own_pids
from agent.cli.command import Command, invocation
from agent.cli.finding import Finding, Level, show, worst
from agent.cli.locate import answers
from agent.cli.network import check_network
from agent.cli.ports import check_ports
from agent.errors import BadInput, DeviceFault, NotRunning

if TYPE_CHECKING:
    from agent.config import StationConfig

PACKAGES: Final = ("lerobot", "torch", "pyzmq", "flwr")

CLOCK_ANSWER_S: Final = 5.0
"""timedatectl asks a service over D-Bus, which may have to start first."""


def register(app: typer.Typer) -> None:
    app.command("doctor", cls=Command, epilog="Example: so-agent doctor -c station.yaml")(doctor)


def doctor() -> None:
    """Check Python, packages, permissions, real-time rights, rendering and clock; with -c FILE that station, too."""
    findings = list(examine(invocation().load() if invocation().config else None))
    ok = worst(findings) is not Level.ERROR
    if invocation().json:
        typer.echo(json.dumps({"ok": ok, "findings": [finding.plain() for finding in findings]}))
    else:
        show(findings)
    if not ok:
        raise typer.Exit(DeviceFault.exit_code)


def examine(config: "StationConfig | None") -> Iterator[Finding]:
    """Every finding, one after the other; those about a station only with its configuration."""
    yield _python()
    yield from (_package(name) for name in PACKAGES)
    yield _group("serial ports", "dialout", Path("/dev/ttyACM0"), needed=bool(list(Path("/dev").glob("ttyACM*"))))
    yield _group("cameras", "video", Path("/dev/video0"), needed=bool(list(Path("/dev").glob("video*"))))
    yield _realtime()
    yield _clock()
    yield _rendering(config)
    if config is None:
        yield Finding("station", Level.NOTE, "No configuration was named; add -c FILE to check a station too.")
        yield _running(None)
        return
    yield check_state_dir(config)
    yield from check_ports(config, own_pids(config))
    yield from check_calibration(config)
    yield from check_cameras(config)
    yield from check_network(config)
    yield _running(config)


def _python() -> Finding:
    return Finding("Python", Level.OK, f"{sys.version.split()[0]}, {sys.executable}")


def _package(name: str) -> Finding:
    try:
        return Finding(name, Level.OK, installed_version(name))
    except PackageNotFoundError:
        return Finding(name, Level.ERROR, f"{name} is not installed.", "Run `make setup`.")


def _group(name: str, group: str, device: Path, needed: bool) -> Finding:
    if os.geteuid() == 0:
        return Finding(name, Level.OK, "running as root")
    try:
        member = grp.getgrnam(group).gr_gid in os.getgroups()
    except KeyError:
        return Finding(name, Level.NOTE, f"This system has no group {group}; permissions are handled otherwise.")
    if member or (device.exists() and os.access(device, os.R_OK | os.W_OK)):
        return Finding(name, Level.OK, f"this user may open them (group {group})")
    return Finding(
        name,
        Level.ERROR if needed else Level.WARNING,
        f"This user is not in the group {group}.",
        f"Run `sudo usermod -aG {group} $USER`, then log in again.",
    )


def _realtime() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_RTPRIO)
    try:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, *before)
    except PermissionError:
        return Finding(
            "real time",
            Level.WARNING,
            f"SCHED_FIFO is not permitted (RLIMIT_RTPRIO {hard}); on a busy machine the control loop is late by 10 ms.",
            "Add `@dialout - rtprio 20` to /etc/security/limits.d/so-agent.conf, then log in again.",
        )
    return Finding("real time", Level.OK, "SCHED_FIFO is permitted")


def _clock() -> Finding:
    """The wall clock only labels data, so a wrong one is no error."""
    try:
        answer = subprocess.run(
            ["timedatectl", "show", "--property=NTPSynchronized", "--value"],
            capture_output=True, text=True, timeout=CLOCK_ANSWER_S, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return Finding("clock", Level.NOTE, "Whether the clock is synchronised is not known (no timedatectl).")
    if answer == "yes":
        return Finding("clock", Level.OK, "synchronised")
    return Finding("clock", Level.WARNING, "The clock is not synchronised.", "Run `sudo timedatectl set-ntp true`.")


def _rendering(config: "StationConfig | None") -> Finding:
    virtual = config is not None and any(camera.type == "zmq" for camera in config.cameras.values())
    try:
        for library in ("libEGL.so.1", "libEGL_mesa.so.0"):
            ctypes.CDLL(library)
    except OSError as error:
        return Finding(
            "rendering",
            Level.ERROR if virtual else Level.NOTE,
            f"EGL cannot be loaded ({error}); the virtual station needs it, hardware does not.",
            "Run `sudo apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri`.",
        )
    return Finding("rendering", Level.OK, "EGL can be loaded")


def _running(config: "StationConfig | None") -> Finding:
    try:
        socket = config.paths.agent_socket if config else invocation().agent_socket()
    except (NotRunning, BadInput) as error:
        return Finding("agent", Level.NOTE, error.message, error.hint)
    if answers(socket):
        return Finding("agent", Level.OK, f"running, socket {socket}")
    return Finding("agent", Level.NOTE, "The agent does not run.", "Start it with `so-agent run -c FILE`.")
