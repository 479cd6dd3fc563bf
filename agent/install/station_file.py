"""The configuration of a station as a service: the person's own file, comments and all, with the service's folders."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.config import StationConfig, load
from agent.errors import BadInput
from agent.install.environment import HIDDEN, TEMPORARY

CONFIGURATION: Final = Path("/etc/so-agent")
STATE: Final = Path("/var/lib/so-agent")
SOCKETS: Final = Path("/run/so-agent")


@dataclass(frozen=True)
class StationFile:
    """`text` is what goes to /etc; `notes` are for the person who installs it."""

    name: str
    text: str
    notes: tuple[str, ...]


def adapt(source: Path, config: StationConfig) -> StationFile:
    """Point `source`, which was read as `config`, at the service's folders. Raises BadInput where it resists."""
    text = source.read_text(encoding="utf-8")
    state, sockets = STATE / config.station, SOCKETS / config.station
    text = _set(text, "state_dir", str(state))
    text = _set(text, "run_dir", str(sockets), after="state_dir")
    text = re.sub(r"(?m)^(\s+calibration_dir:\s*)[^#\n]*?(\s*(?:#.*)?)$", r'\1"{state_dir}/calibration"\2', text)
    adapted = _parse(text)
    wanted = (state, sockets, state / "calibration")
    if (adapted.state_dir, adapted.run_dir, adapted.robot.calibration_dir) != wanted:
        raise BadInput(
            f"{source} is written in a way that cannot be changed line by line.",
            f"Set state_dir to {state}, run_dir to {sockets} and robot.calibration_dir to {state}/calibration by hand.",
        )
    return StationFile(config.station, text, tuple(_notes(adapted)))


def _set(text: str, key: str, value: str, after: str | None = None) -> str:
    """Set a key of the outermost level; the comment behind it stays."""
    line, count = re.subn(rf"(?m)^({key}:\s*)[^#\n]*?(\s*(?:#.*)?)$", rf"\g<1>{value}\g<2>", text, count=1)
    if count or after is None:
        return line
    return re.sub(rf"(?m)^({after}:.*)$", rf"\g<1>\n{key}: {value}", text, count=1)


def _parse(text: str) -> StationConfig:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "station.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path)


def _notes(config: StationConfig) -> list[str]:
    notes = [
        f"{where} is {value}, which the service cannot see. Put the files into "
        f'/etc/so-agent/credentials/{config.station} and name them as "{{credentials}}/NAME".'
        for where, value in _paths(config.model_dump())
        if any(value.is_relative_to(place) for place in HIDDEN + TEMPORARY)
    ]
    ports = {"follower": config.robot.follower, "leader": config.robot.leader}
    notes += [
        f"robot.{name}.port is {arm.port}, which may be the other arm after the next boot. "
        "Use a name below /dev/so-agent or /dev/serial/by-id."
        for name, arm in ports.items()
        if arm and re.fullmatch(r"/dev/tty\w+", str(arm.port))
    ]
    return notes


def _paths(value: Any, where: str = "") -> list[tuple[str, Path]]:
    """Every path in the settings, with the name of its field."""
    match value:
        case Path():
            return [(where, value)]
        case dict():
            return [
                found
                for key, inner in value.items()
                for found in _paths(inner, f"{where}.{key}" if where else str(key))
            ]
        case _:
            return []
