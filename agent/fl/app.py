"""The Flower app of this repository: what `flwr run .` runs, in simulation and on stations.

settings.py     every number of a run, from `--run-config`
layout.py       names and shapes of an adapter's arrays, from the base policy alone; bytes a round (no torch)
adapter.py      an adapter on disk: what the server keeps of a round, and what a station finds in `candidates`
exchange.py     what is in the messages, and what an error reply means
client_app.py   train, evaluate and query on a station
trainer.py      a few steps of LoRA on the station's episodes, interruptible at each of them
server_app.py   samples stations, aggregates, keeps every round, goes on after a crash
strategy.py     Flower's own strategies, with bounded waits and checked replies

The bundle that Flower sends to stations (FAB) carries this repository's pyproject.toml and LICENSE, and **no code**: a
station runs the `agent.fl` that it has installed. Whoever controls a SuperLink can choose the numbers in
`[tool.flwr.app.config]` within the limits of settings.py, and nothing else. `is_ours(fab)` says whether a FAB is such
a one; `write_app(folder)` makes a folder for `flwr run FOLDER` where there is no checkout of the repository.

On a station, the process `flwr-clientapp` needs the environment variable SO_AGENT_BRIEF (brief.py) and nothing in
`--node-config`. It looks for the base policy in `brief.policies` by its hash, checks `brief.flag` before and after
loading and at each step, and replies within one step of its appearance: with partial work, or with Error(BUSY).
It changes neither process priority nor cgroup: its parent does. In simulation there is no brief; Flower's
`partition-id` and `num-partitions` say which part of `dataset` a client has.
"""

import io
import json
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from agent.fl.settings import defaults

NAME: Final = "so-agent"
PUBLISHER: Final = "so-agent"
FLWR: Final = "1.42.0"
COMPONENTS: Final = {"serverapp": "agent.fl.server_app:app", "clientapp": "agent.fl.client_app:app"}
MEMBERS: Final = frozenset({"pyproject.toml", "LICENSE", ".info/CONTENT"})
MOST_BYTES: Final = 1_000_000
"""Of each member, unpacked. The real ones have some 10 kB."""

LICENSE: Final = "Apache-2.0; the text is in the repository of so-agent.\n"


def is_ours(fab: bytes) -> bool:
    """Whether a FAB carries settings for the app that is installed here, and nothing that could run instead of it."""
    try:
        with zipfile.ZipFile(io.BytesIO(fab)) as packed:
            members = packed.infolist()
            if len(members) != len(MEMBERS) or {each.filename for each in members} != MEMBERS:
                return False
            if any(each.file_size > MOST_BYTES for each in members):
                return False
            about = tomllib.loads(packed.read("pyproject.toml").decode())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError):
        return False
    project, app = about.get("project", {}), about.get("tool", {}).get("flwr", {}).get("app", {})
    return (
        isinstance(project, dict)
        and isinstance(app, dict)
        and project.get("name") == NAME
        and str(project.get("version", "")).replace(".", "").isalnum()
        and app.get("publisher") == PUBLISHER
        and app.get("components") == COMPONENTS
    )


def write_app(folder: Path) -> Path:
    """A folder for `flwr run FOLDER`: what is_ours takes. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(pyproject(), encoding="utf-8")
    license_ = Path(__file__).resolve().parents[2] / "LICENSE"
    text = license_.read_text(encoding="utf-8") if license_.is_file() else LICENSE
    (folder / "LICENSE").write_text(text, encoding="utf-8")
    return folder


def pyproject() -> str:
    """What the repository's pyproject.toml says of the app."""
    sections: dict[str, dict[str, Any]] = {
        "project": {
            "name": NAME,
            "version": version(NAME),
            "description": "Federated rounds of so-agent.",
            "dependencies": [f"flwr>={FLWR}"],
        },
        "project.license": {"file": "LICENSE"},
        "tool.flwr.app": {
            "publisher": PUBLISHER,
            "fab-format-version": 1,
            "flwr-version-target": FLWR,
            "fab-include": ["/LICENSE"],
        },
        "tool.flwr.app.components": COMPONENTS,
        "tool.flwr.app.config": defaults(),
    }
    # JSON's strings, numbers and lists are TOML's, too.
    return "\n".join(
        "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""])
        for name, values in sections.items()
    )
