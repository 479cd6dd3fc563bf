"""What `so-agent fleet status` shows: who is there, and how the runs go."""

from pathlib import Path
from typing import Any

import msgspec

from agent.errors import NotRunning
from agent.fl import fleet_runs
from agent.fl.fleet import Fleet
from agent.fl.run_folder import ADAPTER, ROUND, ROUNDS


def report(fleet: Fleet) -> dict[str, Any]:
    """JSON. What needs the SuperLink is left out when it does not answer, with the reason. Raises BadInput."""
    name = fleet.settings.name
    nodes, serving, problem = {}, None, ""
    try:
        at = fleet.serving()
        serving = {"address": at.address, "control": at.control, "pid": at.pid}
        nodes = _ask(fleet)
    except NotRunning as error:
        problem = str(error)
    return {
        "fleet": name,
        "serving": serving,
        "problem": problem or None,
        "stations": [
            {
                "station": member.name,
                "fingerprint": member.fingerprint,
                "state": nodes.get(member.key, ("unknown", None))[0],
                "since": nodes.get(member.key, ("unknown", None))[1],
            }
            for member in fleet.members()
        ],
        "problems": fleet.problems(),
        "runs": [_run(fleet, record) for record in fleet_runs.requests(fleet)],
    }


def _ask(fleet: Fleet) -> dict[str, tuple[str, str | None]]:
    """Public key -> state and since when."""
    from agent.fl.fleet_control import Control

    control = Control(fleet)
    try:
        fleet_runs.settle(fleet, control.runs())
        by_pem = {node.key: node for node in control.nodes()}
    finally:
        control.close()
    from agent.fl.station_key import public_bytes

    found: dict[str, tuple[str, str | None]] = {}
    for member in fleet.members():
        node = by_pem.get(public_bytes(member.key))
        if node is not None:
            found[member.key] = (node.status, node.since)
    return found


def _run(fleet: Fleet, record: fleet_runs.Request) -> dict[str, Any]:
    return {
        "run": record.name,
        "app": record.app,
        "state": record.over or "under way",
        "details": record.details,
        "resumed": record.resumed,
        "config": record.overrides,
        "rounds": rounds(fleet.runs / record.name),
    }


def rounds(run: Path) -> list[dict[str, Any]]:
    """What the server app wrote of each round; one that cannot be read says so."""
    found = []
    for folder in sorted((run / ROUNDS).glob("[0-9]*")):
        about: dict[str, Any] = {}
        try:
            about |= msgspec.json.decode((folder / ROUND).read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            about["problem"] = str(error)
        adapter = folder / ADAPTER
        found.append(about | {"round": int(folder.name), "adapter": str(adapter) if adapter.is_dir() else None})
    return found
