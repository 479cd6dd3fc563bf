"""Asks a running virtual station for something. Imports nothing heavy: the command line uses it."""

import json
import socket
from pathlib import Path
from typing import Any, Final

from agent.config import StationConfig
from agent.errors import NotRunning, from_code

TIMEOUT_S: Final = 10.0


def inject(config: StationConfig, payload: dict[str, Any]) -> dict[str, Any]:
    """Ask the virtual station of this configuration."""
    return ask(config.paths.virtual_ctl, payload)


def ask(path: Path, payload: dict[str, Any]) -> dict[str, Any]:
    """Send one request and return its answer. Raises NotRunning, or BadInput with the station's own sentence."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(payload).encode() + b"\n")
            line = connection.makefile("rb").readline()
        except OSError as error:
            raise NotRunning(
                f"No virtual station answers on {path}: {error.strerror or error}.",
                "Start it with `so-agent virtual-station -c FILE`.",
            ) from error
    if not line:
        raise NotRunning("The virtual station closed the connection.", "Is it shutting down?")
    answer: dict[str, Any] = json.loads(line)
    if not answer["ok"]:
        raise from_code(answer["code"], answer["message"], answer["hint"])
    return answer
