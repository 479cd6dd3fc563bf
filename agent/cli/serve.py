"""Policies on another machine: serve them, and make the keys for it. Imports neither torch nor lerobot."""

import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agent.cli.command import Command, invocation
from agent.errors import AgentError, BadInput

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.config import Logging, Policy
    from agent.inference.bundle import Bundle
    from agent.inference.engine import Engine

HUNG: Final = 70
"""Exit status of a server that gave itself up (EX_SOFTWARE of sysexits.h)."""

MAX_PORT: Final = 65535

CACHE: Final = ".cache"
"""Below --policies: weights that an engine converted. Hidden, and so no policy."""

SERVE_EXAMPLE: Final = "Example: so-agent policy serve --bind tcp://0.0.0.0:5555 --keys keys --policies policies"


def register(policy: typer.Typer) -> None:
    """Into the group `so-agent policy`."""
    policy.command("serve", cls=Command, epilog=SERVE_EXAMPLE)(serve)
    policy.command("keygen", cls=Command, epilog="Example: so-agent policy keygen keys --station kitchen")(keygen)


def serve(
    bind: Annotated[str, typer.Option(metavar="tcp://ADDR:PORT", help="Where to listen; 0.0.0.0 is every address.")],
    keys: Annotated[Path, typer.Option(metavar="DIR", help="server.key and stations/, made by `policy keygen`.")],
    policies: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder of bundles; default: the policies of the station of -c FILE."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="As in the configuration; default: the one of -c FILE, or auto.")
    ] = None,
) -> None:
    """Predict for stations on other machines, until Ctrl-C or SIGTERM. Only stations whose keys are known may ask."""
    from agent import telemetry
    from agent.clock import SystemClock
    from agent.inference.library import Library
    from agent.inference.server import PolicyServer

    port = re.fullmatch(r"tcp://[^\s/]+:(\d{1,5}|\*)", bind)
    if not port or (port[1] != "*" and int(port[1]) > MAX_PORT):  # zmq would listen on the remainder
        raise BadInput(f"{bind} is no address to listen on.", "Name one of this machine and a port: tcp://ADDR:PORT.")
    folder, cache, settings, logging = _where(policies)
    if engine:
        settings = _with_engine(settings, engine)
    if not folder.is_dir():
        raise BadInput(
            f"{folder} is no folder of policies.", "Import one with `so-agent policy import`, or name another."
        )
    server = PolicyServer(
        bind, keys.expanduser(), Library(folder, folder.parent / "policy.json"), _loader(settings, cache), SystemClock()
    )
    telemetry.configure(logging, "policy-server")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    telemetry.logger.info(
        "ready", address=server.address, stations=server.stations, policies=Library(folder, folder).names()
    )
    code = 0
    try:
        server.run()
    except AgentError as error:
        telemetry.logger.error("the server ends", reason=str(error))
        code = HUNG
    server.close()
    telemetry.logger.info("ended")
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread in the middle of loading or predicting cannot be joined, and must not outlive what it uses.
    os._exit(code)


def keygen(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder of keys; made if need be.")],
    station: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make this station's keys, and the server's if there are none.")
    ] = None,
) -> None:
    """Make the keys by which a policy server and its stations know each other. Never overwrites one."""
    from agent.inference.keys import SERVER_KEY, SERVER_PUB, STATION_KEY
    from agent.inference.keys import keygen as make

    made = make(folder.expanduser(), station)
    lines = [f"Made {', '.join(map(str, made))}."]
    if any(path.name == SERVER_KEY for path in made):
        lines.append(f"{folder} stays on the server: so-agent policy serve --keys {folder}")
    if station:
        own = folder / "stations" / station
        lines += [
            f"On the station {station}, in the folder that policy.remote.keys names:",
            f"  {own}.key as {STATION_KEY}   secret: move it there, do not leave it here",
            f"  {folder / SERVER_PUB} as {SERVER_PUB}",
            f"{own}.pub stays here: it lets the station in.",
        ]
    else:
        lines.append(f"For each station: so-agent policy keygen {folder} --station NAME")
    invocation().show({"files": [str(path) for path in made]}, "\n".join(lines))


def _where(policies: Path | None) -> "tuple[Path, Path, Policy, Logging]":
    """Folder of bundles, folder of converted weights, how to compute, how to log."""
    from agent.config import Logging, Policy

    if policies is None or invocation().config:
        config = invocation().load()
        folder = policies or config.paths.policies
        return folder.expanduser(), config.paths.policy_cache, config.policy, config.logging
    folder = policies.expanduser()
    return folder, folder / CACHE, Policy(), Logging()


def _with_engine(settings: "Policy", engine: str) -> "Policy":
    from pydantic import ValidationError

    from agent.config import Policy

    try:
        return Policy.model_validate(settings.model_dump() | {"engine": engine})
    except ValidationError as error:
        allowed = str(error.errors(include_url=False)[0]["msg"]).removeprefix("Input should be ")
        raise BadInput(f"There is no engine {engine}.", f"Engines are {allowed}.") from error


def _loader(settings: "Policy", cache: Path) -> "Callable[[Bundle], Engine]":
    def load(bundle: "Bundle") -> "Engine":
        from agent.inference.engines import load_engine  # imports torch; when the first station asks

        return load_engine(bundle, settings, cache=cache / bundle.hash)

    return load
