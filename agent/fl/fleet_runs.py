"""The runs of a fleet: what was asked for, so that it can be asked for again after a crash of the server.

runs/NAME/request.json   what was asked for, and what became of it
runs/NAME/request.fab    the app as it was submitted
runs/NAME/...            what the server app keeps of each round: run_folder.py
"""

import hashlib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from agent.config import NAME_PATTERN
from agent.errors import BadInput
from agent.fl.app import NAME, write_app
from agent.fl.fleet import Fleet
from agent.fl.run_folder import ROUNDS
from agent.telemetry import logger

if TYPE_CHECKING:
    from agent.fl.fleet_control import Control, Run

RECORD: Final = "request.json"
APP: Final = "request.fab"

OUTPUT_KEY: Final = "output"
NAME_KEY: Final = "name"
"""Of the run config: where the server app keeps its rounds, and under which name."""

type Value = bool | int | float | str


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `request.json` holds."""

    name: str
    app: str  # SHA-256 that stations must know
    overrides: dict[str, Value]
    number: int  # of Flower
    over: str = ""  # completed, failed, stopped; empty while it is under way
    details: str = ""
    resumed: int = 0  # how often it was submitted again


def packed(folder: Path | None) -> bytes:
    """The app in a folder, as `flwr run` packs it; None: this agent's own. Raises BadInput."""
    import click
    from flwr.cli.build import build_fab_from_disk

    with tempfile.TemporaryDirectory() as own:
        where = folder or write_app(Path(own) / NAME)
        try:
            return build_fab_from_disk(where)
        except (ValueError, OSError, click.ClickException) as error:
            raise BadInput(f"The app in {where} cannot be packed: {error}.", "Does `flwr build` work there?") from error


def check(fleet: Fleet, overrides: Mapping[str, Value]) -> None:
    """Whether this agent's own app takes these settings, and has the policy to begin with: the server app finds out
    after the run was begun. Raises BadInput."""
    from agent.fl.base import SHIPPED
    from agent.fl.settings import defaults, read_settings

    wanted = read_settings({**defaults(), **overrides}).policy
    places = (Path(wanted),) if Path(wanted).is_absolute() else (fleet.policies / wanted, SHIPPED / wanted)
    if not any(place.is_dir() for place in places):
        known = ", ".join(sorted(path.name for path in fleet.policies.iterdir() if path.is_dir()))
        raise BadInput(
            f"There is no policy {wanted} to begin with.",
            f"Copy its folder to {fleet.policies}{f', where there is {known}' if known else ''}.",
        )


def submit(fleet: Fleet, control: "Control", name: str, app: bytes, overrides: Mapping[str, Value]) -> Request:
    """Begin a run, or go on with one that failed or was stopped. Raises BadInput while one of this name is under way,
    or when it is done."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise BadInput(f"{name!r} cannot be a run's name.", "Use lower case letters, digits, - and _: --name NAME.")
    folder = fleet.runs / name
    before = _read(folder / RECORD) if (folder / RECORD).exists() else None
    if before and before.over in ("", "completed"):
        raise BadInput(f"There is a run {name} already.", "Give another --name.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / APP).write_bytes(app)
    number = control.start(app, _config(fleet, name, overrides))
    resumed = before.resumed + 1 if before else 0
    record = Request(name, hashlib.sha256(app).hexdigest(), dict(overrides), number, resumed=resumed)
    _write(fleet, record)
    return record


def go_on(fleet: Fleet, control: "Control") -> None:
    """Submit again what a SuperLink was at when it ended. Its successor knows nothing of it."""
    known = {run.id for run in control.runs()}
    for record in requests(fleet):
        if record.over or record.number in known:
            continue
        app = (fleet.runs / record.name / APP).read_bytes()
        number = control.start(app, _config(fleet, record.name, record.overrides))
        _write(fleet, msgspec.structs.replace(record, number=number, resumed=record.resumed + 1))
        logger.warning("run submitted again", run=record.name, after_round=rounds(fleet, record.name))


def settle(fleet: Fleet, runs: "list[Run]") -> None:
    """Write down how runs ended."""
    by_number = {run.id: run for run in runs}
    for record in requests(fleet):
        run = by_number.get(record.number)
        if record.over or run is None:
            continue
        status, _, how = run.status.partition(":")
        if status == "finished":
            _write(fleet, msgspec.structs.replace(record, over=how or "completed", details=run.details))
            logger.info("run over", run=record.name, how=how, details=run.details)


def requests(fleet: Fleet) -> list[Request]:
    """By name."""
    return [_read(path) for path in sorted(fleet.runs.glob(f"*/{RECORD}"))]


def rounds(fleet: Fleet, name: str) -> int:
    """How many rounds of a run lie on the disk."""
    folder = fleet.runs / name / ROUNDS
    return max((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()), default=0)


def _config(fleet: Fleet, name: str, overrides: Mapping[str, Value]) -> dict[str, Value]:
    return {**overrides, OUTPUT_KEY: str(fleet.runs), NAME_KEY: name}


def _read(path: Path) -> Request:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Request)
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(f"Cannot read {path}: {error}.", "Remove the run's folder.") from error


def _write(fleet: Fleet, record: Request) -> None:
    path = fleet.runs / record.name / RECORD
    new = path.with_name(f".{RECORD}.new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    new.replace(path)
