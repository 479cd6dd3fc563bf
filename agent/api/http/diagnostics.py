"""What a person attaches to a question: status, events, settings without secrets, versions and the newest log lines."""

import io
import json
import os
import platform
import re
import stat
import subprocess
import zipfile
from collections.abc import Mapping
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any, Final

import yaml

from agent.config import StationConfig

LOG_BYTES: Final = 1_000_000
JOURNAL_LINES: Final = 5000
JOURNAL_S: Final = 10.0

SECRET: Final = re.compile(r"password|secret|token|username", re.IGNORECASE)
"""Names of settings whose values nobody else should see."""

CREDENTIALS: Final = re.compile(r"//[^/@\s]+@")
"""The user and password of an address, as cameras have them."""

HIDDEN: Final = "(hidden)"


def bundle(config: StationConfig, status: Mapping[str, Any], events: Mapping[str, Any]) -> bytes:
    """A zip file. Blocks: reads logs."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (
            ("status.json", json.dumps(status, indent=2)),
            ("events.json", json.dumps(events, indent=2)),
            ("config.yaml", yaml.safe_dump(without_secrets(config.model_dump(mode="json")), sort_keys=False)),
            ("machine.json", json.dumps(machine(), indent=2)),
            ("log.txt", CREDENTIALS.sub(f"//{HIDDEN}@", log())),
        ):
            archive.writestr(name, content)
    return out.getvalue()


def without_secrets(value: Any, name: str = "") -> Any:
    """The same settings, with what is secret hidden."""
    match value:
        case dict():
            return {key: without_secrets(inner, str(key)) for key, inner in value.items()}
        case list():
            return [without_secrets(inner, name) for inner in value]
        case str() if SECRET.search(name):
            return HIDDEN
        case str():
            return CREDENTIALS.sub(f"//{HIDDEN}@", value)
        case _:
            return value


def machine() -> dict[str, Any]:
    """The host, and the versions of what the agent is made of."""
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _packages()},
    }


def _packages() -> list[str]:
    wanted = (line for line in requires("so-agent") or () if "extra ==" not in line)
    return ["so-agent", *(re.split(r"[\s\[<>=!~;]", line, maxsplit=1)[0] for line in wanted)]


def log() -> str:
    """The newest lines of this agent's log, wherever standard error goes to; else the sentence that says where."""
    about = os.fstat(2)
    if stat.S_ISREG(about.st_mode):
        with Path("/proc/self/fd/2").open("rb") as file:
            file.seek(max(0, about.st_size - LOG_BYTES))
            return file.read(LOG_BYTES).decode(errors="replace")
    if "JOURNAL_STREAM" in os.environ:
        return _journal()
    return "The log goes to a terminal or a pipe, and is kept nowhere by the agent.\n"


def _journal() -> str:
    command = ["journalctl", "--no-pager", "--output=short-iso", f"--lines={JOURNAL_LINES}"]
    if invocation := os.environ.get("INVOCATION_ID"):
        command.append(f"_SYSTEMD_INVOCATION_ID={invocation}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=JOURNAL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"The journal could not be read: {error}.\n"
    return done.stdout or f"The journal shows nothing to this user. {done.stderr}\n"
