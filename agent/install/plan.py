"""What installing and uninstalling consist of, step by step. Nothing here changes anything; `Step.apply` does."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.config import CREDENTIALS, StationConfig
from agent.errors import BadInput
from agent.install import source
from agent.install.environment import Environment, below
from agent.install.station_file import CONFIGURATION, STATE, adapt
from agent.install.steps import Copy, File, Folder, Gone, Link, Run, State, Step

UNITS: Final = Path("/etc/systemd/system")
SYSUSERS: Final = Path("/etc/sysusers.d/so-agent.conf")
UDEV_RULES: Final = Path("/etc/udev/rules.d/60-so-agent.rules")
UDEV_CONTROL: Final = Path("/run/udev/control")
WANTS: Final = UNITS / "multi-user.target.wants"

STATION_UNIT: Final = "so-agent@.service"
SECURE_UNIT: Final = "so-agent-secure@.service"
FLEET_UNIT: Final = "so-fleet.service"
STATION_UNITS: Final = (STATION_UNIT, SECURE_UNIT)

DROP_IN: Final = "10-environment.conf"
CREDENTIALS_DROP_IN: Final = "20-credentials.conf"
FOLDER_DROP_IN: Final = "20-folder.conf"
WRITTEN: Final = (
    "# Written by `so-agent install`, and again by the next one. Your changes belong into another drop-in.\n"
)

OPERATORS: Final = "so-agent"
FLEET_USER: Final = "so-fleet"


@dataclass(frozen=True)
class Plan:
    """Steps in order, and what a person should know."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()

    @property
    def open(self) -> list[Step]:
        """What is still to be done."""
        return [step for step in self.steps if step.state() is not State.SAME]


@dataclass(frozen=True)
class Machine:
    """Where to install: this machine, or the image of one whose file system lies at `root`."""

    root: Path = Path("/")

    @property
    def is_this_one(self) -> bool:
        return self.root == Path("/")

    @property
    def runs_systemd(self) -> bool:
        return self.is_this_one and Path("/run/systemd/system").is_dir()

    def at(self, path: Path) -> Path:
        return below(self.root, path)

    def has_user(self, name: str) -> bool:
        try:
            return any(line.startswith(f"{name}:") for line in self.at(Path("/etc/passwd")).read_text().splitlines())
        except OSError:
            return False

    def stations(self) -> list[str]:
        """The stations that start at boot."""
        return sorted(
            path.name[len("so-agent@") : -len(".service")] for path in self.at(WANTS).glob("so-agent@*.service")
        )


def install_station(machine: Machine, environment: Environment, config: StationConfig, file: Path, start: bool) -> Plan:
    """Raises BadInput where the configuration cannot be a service's."""
    station = adapt(file, config)
    unit = f"so-agent@{station.name}.service"
    steps: list[Step] = [
        *_user(machine, "so-agent.sysusers", SYSUSERS, OPERATORS),
        *_units(machine, environment, STATION_UNITS),
        File(machine.at(UDEV_RULES), source.text("60-so-agent.rules"), "arms get names that stay"),
        Folder(machine.at(CONFIGURATION), "configurations, one a station"),
        Folder(machine.at(CREDENTIALS), "secrets, for root only", 0o700),
        Folder(machine.at(CREDENTIALS / station.name), "secrets of this station", 0o700),
        File(
            machine.at(CONFIGURATION / f"{station.name}.yaml"), station.text, "the station's configuration", keep=True
        ),
        *_calibration(machine, config),
        *_credentials(machine, station.name, unit),
    ]
    changed = any(step.state() is not State.SAME for step in steps)
    steps.append(_enable(machine, unit, STATION_UNIT))
    notes = [*station.notes, *_about(machine, environment)]
    if config.state_dir != STATE / station.name and config.paths.datasets.is_dir():
        notes.append(f"Episodes and policies recorded so far stay in {config.state_dir}.")
    if machine.runs_systemd:
        steps.append(Run(("systemctl", "daemon-reload"), "systemd reads its units again", done=not changed))
        if UDEV_CONTROL.exists():
            trigger = ("udevadm", "trigger", "--subsystem-match=tty", "--action=change")
            steps += [
                Run(("udevadm", "control", "--reload"), "udev reads its rules again", done=not changed),
                Run(trigger, "arms that are plugged in get their names", done=not changed),
            ]
        if start:
            active = _is_active(unit)
            steps.append(Run(("systemctl", "start", unit), "the station starts", done=active))
            if active and changed:
                notes.append(f"{unit} runs; `systemctl restart {unit}` makes it use what changed. That parks the arm.")
    return Plan(tuple(steps), tuple(notes))


def install_fleet(machine: Machine, environment: Environment, folder: Path, start: bool) -> Plan:
    """The server side of a fleet; `folder` was made by `so-agent fleet init`."""
    own = machine.at(UNITS / f"{FLEET_UNIT}.d")
    which = f'Environment="SO_AGENT_FLEET_DIR={folder}"\nReadWritePaths={_quoted(folder)}\n'
    steps: list[Step] = [
        *_user(machine, "so-fleet.sysusers", SYSUSERS.with_name("so-fleet.conf"), FLEET_USER),
        *_units(machine, environment, (FLEET_UNIT,)),
        File(own / FOLDER_DROP_IN, f"{WRITTEN}[Service]\n{which}", "which fleet is served"),
    ]
    changed = any(step.state() is not State.SAME for step in steps)
    steps.append(_enable(machine, FLEET_UNIT, FLEET_UNIT))
    if machine.runs_systemd:
        steps.append(Run(("systemctl", "daemon-reload"), "systemd reads its units again", done=not changed))
        if start:
            steps.append(Run(("systemctl", "start", FLEET_UNIT), "the fleet is served", done=_is_active(FLEET_UNIT)))
    owner = f"The folder and all in it must belong to the user {FLEET_USER}: `chown -R {FLEET_USER}: {folder}`."
    return Plan(tuple(steps), (*_about(machine, environment), owner))


def uninstall(machine: Machine, station: str | None) -> Plan:
    """Take away one station's service, or all of them and what they share. Configuration and episodes stay.

    Raises BadInput for a station that is no service here.
    """
    if station is not None and not _known(machine, station):
        known = ", ".join(machine.stations()) or "none"
        raise BadInput(f"No station {station} is installed here.", f"Installed are: {known}.")
    names = machine.stations() if station is None else [station]
    steps: list[Step] = []
    for name in names:
        unit = f"so-agent@{name}.service"
        if machine.runs_systemd:
            steps.append(Run(("systemctl", "stop", unit), "the arm is parked and released", done=not _is_active(unit)))
        own = machine.at(UNITS / f"{unit}.d")
        steps += [
            Gone(machine.at(WANTS / unit), "it does not start at boot any more"),
            Gone(own / CREDENTIALS_DROP_IN, "which secrets it was shown"),
            Gone(own, ""),
        ]
    notes = []
    others = [name for name in machine.stations() if name not in names]
    if others:
        notes.append(f"The units stay: {', '.join(others)} need them.")
    else:
        if machine.at(UNITS / FLEET_UNIT).exists() and station is None:
            steps += _without_fleet(machine)
        for unit in STATION_UNITS:
            own = machine.at(UNITS / f"{unit}.d")
            steps += [Gone(machine.at(UNITS / unit), "the unit"), Gone(own / DROP_IN, "its environment"), Gone(own, "")]
        steps += [
            Gone(machine.at(UDEV_RULES), "names of arms"),
            Gone(machine.at(SYSUSERS), "the user stays, it owns the episodes"),
        ]
    if machine.runs_systemd:
        steps.append(Run(("systemctl", "daemon-reload"), "systemd reads its units again"))
    kept = [path for path in (CONFIGURATION, STATE) if machine.at(path).exists()]
    if kept:
        notes.append(f"Kept: {' and '.join(map(str, kept))}, with configurations, secrets and episodes.")
    return Plan(tuple(steps), tuple(notes))


def _known(machine: Machine, station: str) -> bool:
    """Whether it is a service here, also one that was disabled or taken away before."""
    left = (WANTS / f"so-agent@{station}.service", CONFIGURATION / f"{station}.yaml")
    return any(os.path.lexists(machine.at(path)) for path in left)


def _without_fleet(machine: Machine) -> list[Step]:
    own = machine.at(UNITS / f"{FLEET_UNIT}.d")
    stop: list[Step] = []
    if machine.runs_systemd:
        stop.append(Run(("systemctl", "stop", FLEET_UNIT), "the fleet ends", done=not _is_active(FLEET_UNIT)))
    return [
        *stop,
        Gone(machine.at(WANTS / FLEET_UNIT), "it does not start at boot any more"),
        Gone(machine.at(UNITS / FLEET_UNIT), "the unit"),
        Gone(own / DROP_IN, "its environment"),
        Gone(own / FOLDER_DROP_IN, "which fleet was served"),
        Gone(own, ""),
        Gone(machine.at(SYSUSERS.with_name("so-fleet.conf")), "the user stays, it owns the fleet"),
    ]


def _user(machine: Machine, name: str, path: Path, user: str) -> list[Step]:
    argv = ("systemd-sysusers", *(() if machine.is_this_one else (f"--root={machine.root}",)), path.name)
    return [
        File(machine.at(path), source.text(name), f"the user {user}"),
        Run(argv, f"the user {user} is made", done=machine.has_user(user)),
    ]


def _units(machine: Machine, environment: Environment, names: tuple[str, ...]) -> list[Step]:
    steps: list[Step] = []
    for name in names:
        text = source.text(name)
        steps += [
            File(machine.at(UNITS / name), text, "the unit"),
            File(machine.at(UNITS / f"{name}.d" / DROP_IN), _drop_in(text, environment), "where its Python lies"),
        ]
    return steps


def _drop_in(unit: str, environment: Environment) -> str:
    """The unit's own commands, with this environment's Python in the place of /opt/so-agent."""
    lines = ["[Service]", f"Environment=PATH={environment.folder}/bin:/usr/local/bin:/usr/bin:/bin"]
    for line in unit.splitlines():
        key, _, value = line.partition("=")
        if key.startswith("Exec") and "/opt/so-agent/bin/so-agent" in value:
            lines += [f"{key}=", f"{key}={value.replace('/opt/so-agent/bin/so-agent', environment.command)}"]
    if environment.hidden:
        lines += ["ProtectHome=tmpfs", *(f"BindReadOnlyPaths={_quoted(path)}" for path in environment.hidden)]
    return WRITTEN + "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    """As a word of a unit file."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _calibration(machine: Machine, config: StationConfig) -> list[Step]:
    old = config.robot.calibration_dir
    new = STATE / config.station / "calibration"
    if old == new:
        return []
    files = [path for path in (config.paths.follower_calibration, config.paths.leader_calibration) if path]
    return [
        Copy(path, machine.at(new / path.relative_to(old)), "calibration of an arm") for path in files if path.is_file()
    ]


def _credentials(machine: Machine, station: str, unit: str) -> list[Step]:
    folder = machine.at(CREDENTIALS / station)
    drop_in = machine.at(UNITS / f"{unit}.d" / CREDENTIALS_DROP_IN)
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError:  # not made yet, or for root only
        names = []
    if not names:
        return [Gone(drop_in, "there are no secrets any more")] if drop_in.exists() else []
    lines = "".join(f"LoadCredential={name}:{CREDENTIALS / station / name}\n" for name in names)
    return [File(drop_in, f"{WRITTEN}[Service]\n{lines}", "the secrets it is shown")]


def _enable(machine: Machine, unit: str, target: str) -> Link:
    return Link(machine.at(WANTS / unit), str(UNITS / target), "it starts at boot")


def _about(machine: Machine, environment: Environment) -> tuple[str, ...]:
    notes = []
    if missing := environment.missing(machine.root):
        where = "this machine" if machine.is_this_one else f"the image {machine.root}"
        notes.append(f"Not there on {where}, and needed to run: {', '.join(map(str, missing))}.")
    if environment.temporary:
        notes.append(f"The environment {environment.folder} lies in a folder that a boot may empty.")
    if not machine.runs_systemd:
        notes.append(
            "Nothing is started: " + ("this machine does not run systemd." if machine.is_this_one else "an image.")
        )
    return tuple(notes)


def _is_active(unit: str) -> bool:
    """Whether it runs, or is about to."""
    try:
        argv = ["systemctl", "show", "--property=ActiveState", "--value", unit]
        shown = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return shown.stdout.strip() in ("active", "activating", "reloading", "deactivating")
