"""The machine of a fleet: let stations in, serve them, start runs, see how they go. Imports flwr late, torch never."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent.cli.command import Command, group, invocation
from agent.errors import BadInput

if TYPE_CHECKING:
    from agent.fl.fleet import Fleet
    from agent.fl.fleet_control import Value

FOLDER_VARIABLE: Final = "SO_AGENT_FLEET_DIR"
DEFAULT_BIND: Final = "127.0.0.1:9443"

ROUNDS_SHOWN: Final = 20

COLUMNS: Final = (
    ("round", "round"),
    ("asked", "asked"),
    ("used", "used"),
    ("partial", "partial"),
    ("declined", "declined"),
    ("silent", "silent"),
    ("rows", "rows"),
    ("loss", "train_loss"),
    ("held out", "held_out_loss"),
    ("seconds", "seconds"),
    ("bytes", "bytes_from_station"),
)

FleetFolder = Annotated[
    Path, typer.Option("--fleet", metavar="DIR", envvar=FOLDER_VARIABLE, help="The fleet's folder; default: here.")
]
StationName = Annotated[str, typer.Argument(metavar="NAME", help="A station's name in the fleet.")]


def register(app: typer.Typer) -> None:
    fleet = group("fleet", "Stations that learn one policy together: the side of whoever brings them together.")
    fleet.command("init", cls=Command, epilog="Example: so-agent fleet init workshop --host fleet.example.org")(init)
    fleet.command(
        "add-station",
        cls=Command,
        epilog="Example: so-agent fleet add-station kitchen --key kitchen.pub --fleet workshop",
    )(add_station)
    fleet.command("remove-station", cls=Command, epilog="Example: so-agent fleet remove-station kitchen")(
        remove_station
    )
    fleet.command("serve", cls=Command, epilog="Example: so-agent fleet serve --fleet workshop --bind 0.0.0.0:9443")(
        serve
    )
    fleet.command(
        "run",
        cls=Command,
        epilog="Example: so-agent fleet run --name reach-1 --policy demo-reach -r 'num-server-rounds=5'",
    )(run)
    fleet.command("status", cls=Command, epilog="Example: so-agent fleet status --fleet workshop --json")(status)
    fleet.command("stop", cls=Command, epilog="Example: so-agent fleet stop reach-1")(stop)
    app.add_typer(fleet)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where everything of the fleet goes.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Default: after the folder.")] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="A name or address by which stations reach this machine; again for each."),
    ] = None,
) -> None:
    """Make a fleet: an authority of its own, a server certificate, and the folders. Again: a new certificate."""
    from agent.fl.certificates import fingerprint, read_certificate
    from agent.fl.fleet import Fleet

    _as_its_owner(folder)
    fleet = Fleet.init(folder, name or folder.expanduser().absolute().name.lower(), tuple(host or ()))
    print_ = fingerprint(read_certificate(fleet.authority))
    reach = ", ".join(fleet.settings.hosts) or "this machine alone (no --host was given)"
    lines = [
        f"The fleet {fleet.settings.name} is in {fleet.folder}; its certificate is for {reach}.",
        f"Stations need {fleet.authority}; its SHA-256 is {print_[:16]}... ({print_}).",
        f"{fleet.authority_key} signs server certificates: keep it where nobody else comes.",
        "Next: on each station `so-agent fl enroll`, then here `so-agent fleet add-station` with the key it prints.",
    ]
    result = {"fleet": fleet.settings.name, "folder": str(fleet.folder), "ca": str(fleet.authority), "sha256": print_}
    invocation().show(result, "\n".join(lines))


def add_station(
    name: StationName,
    key: Annotated[
        str,
        typer.Option(metavar="FILE", help="The public key that `fl enroll` printed, as a file; - reads it from stdin."),
    ],
    fleet: FleetFolder = Path(),
) -> None:
    """Let a station take part. A fleet that is being served notices within seconds."""
    there = _open(fleet)
    if key == "-":
        line = sys.stdin.read()
    else:
        try:
            line = Path(key).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise BadInput(f"Cannot read the key {key}: {why}.", "Give the file of a public key.") from error
    member = there.add_station(name, line)
    invocation().show(
        {"station": name, "fingerprint": member.fingerprint}, f"{name} may take part; its key is {member.fingerprint}."
    )


def remove_station(name: StationName, fleet: FleetFolder = Path()) -> None:
    """Let a station take part no longer."""
    _open(fleet).remove_station(name)
    invocation().show({"station": name}, f"{name} may no longer take part.")


def serve(
    fleet: FleetFolder = Path(),
    bind: Annotated[
        str, typer.Option(metavar="ADDR:PORT", help="Where stations connect to; 0.0.0.0 is every address.")
    ] = DEFAULT_BIND,
) -> None:
    """Serve the fleet until Ctrl-C. From outside only stations' own requests get in; runs are begun on this machine."""
    import asyncio
    import signal

    from agent import telemetry
    from agent.config import Logging
    from agent.fl.fleet_serve import Server

    host, port = _address(bind)
    folder = _open(fleet)
    telemetry.configure(Logging(), "fleet")
    server = Server(folder, host, port)
    for problem in folder.problems():
        telemetry.logger.warning("key file ignored", reason=problem)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stop)
        await server.run()

    asyncio.run(main())


def run(
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the run; its rounds lie in runs/NAME.")],
    run_config: Annotated[
        list[str] | None,
        typer.Option("--run-config", "-r", metavar="KEY=VALUE", help="Numbers of the app, as `flwr run` takes them."),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to start from: a bundle in the fleet's policies/.")
    ] = None,
    app: Annotated[Path | None, typer.Option(metavar="DIR", help="Another Flower app than this agent's own.")] = None,
    fleet: FleetFolder = Path(),
) -> None:
    """Begin a run: the app is sent to the stations that are there, round after round."""
    from agent.fl import fleet_runs
    from agent.fl.fleet_control import Control

    folder = _open(fleet)
    overrides = _overrides(run_config or [])
    if policy:
        overrides["policy"] = policy
    if app is None:
        fleet_runs.check(folder, overrides)
    content = fleet_runs.packed(app)
    control = Control(folder)
    try:
        record = fleet_runs.submit(folder, control, name, content, overrides)
    finally:
        control.close()
    own = "" if app is None else f" Stations must allow it: federation.apps must hold {record.app}."
    sentence = f"The run {name} has begun; its app is {record.app}.{own} See `so-agent fleet status`."
    invocation().show({"run": name, "app": record.app, "number": record.number}, sentence)


def stop(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The name of a run.")], fleet: FleetFolder = Path()
) -> None:
    """End a run; what its rounds have made so far stays."""
    from agent.fl import fleet_runs
    from agent.fl.fleet_control import Control

    folder = _open(fleet)
    found = [record for record in fleet_runs.requests(folder) if record.name == name]
    if not found:
        raise BadInput(f"There is no run {name}.", "See `so-agent fleet status`.")
    if found[0].over:
        raise BadInput(f"The run {name} is over: {found[0].over}.", "See `so-agent fleet status`.")
    control = Control(folder)
    try:
        control.stop(found[0].number)
    finally:
        control.close()
    invocation().show({"run": name}, f"{name} is being stopped.")


def status(fleet: FleetFolder = Path()) -> None:
    """Who is there, and how the runs go."""
    from agent.fl import fleet_report

    found = fleet_report.report(_open(fleet))
    if invocation().json:
        typer.echo(json.dumps(found))
        return
    _print(found)


def _open(folder: Path) -> "Fleet":
    """Raises BadInput where no fleet is: before anything is asked of one that seems to be away or empty."""
    from agent.fl.fleet import Fleet

    _as_its_owner(folder)
    fleet = Fleet(folder)
    _ = fleet.settings
    return fleet


def _as_its_owner(folder: Path) -> None:
    """Root at a fleet that is served by a user of its own becomes that user, for good, who reads what root does.

    What is written there is to be read and written by who serves it: a run's folder that belongs to root would take
    none of its rounds.
    """
    if os.geteuid() != 0:
        return
    try:
        found = folder.expanduser().stat()
    except OSError:
        return  # there is none yet; whoever opens it says so
    if found.st_uid != 0:
        from agent.fl import shelter

        shelter.become(found.st_uid, found.st_gid, reading=True)


def _print(found: dict[str, Any]) -> None:
    console = Console()
    served = found["serving"]
    console.print(
        Text.assemble(
            (f" {found['fleet']} ", "black on green" if served else "white on red"),
            f"  {'served on ' + served['address'] if served else found['problem']}",
        )
    )
    table = Table(box=None, pad_edge=False)
    for column in ("station", "state", "since", "key"):
        table.add_column(column)
    for station in found["stations"]:
        style = {"online": "green", "offline": "yellow"}.get(station["state"], "dim")
        table.add_row(station["station"], Text(station["state"], style), station["since"] or "", station["fingerprint"])
    console.print(table if found["stations"] else "No station may take part yet: `so-agent fleet add-station`.")
    for each in found["runs"]:
        _print_run(console, each)


def _print_run(console: Console, run: dict[str, Any]) -> None:
    console.print(
        Text.assemble(
            ("run ", "dim"), (run["run"], "bold"), f"  {run['state']}", f"  {run['details']}" if run["details"] else "",
            (f"  resumed {run['resumed']}x" if run["resumed"] else ""), (f"  app {run['app'][:12]}", "dim"),
        )
    )  # fmt: skip
    if not run["rounds"]:
        return
    table = Table(box=None, pad_edge=False, collapse_padding=True)  # 80 columns are enough
    for column, _ in COLUMNS:
        table.add_column(column, justify="right")
    for each in run["rounds"][-ROUNDS_SHOWN:]:
        table.add_row(*(_short(each.get(key)) for _, key in COLUMNS), each.get("problem") or "")
    console.print(table)
    if (earlier := len(run["rounds"]) - ROUNDS_SHOWN) > 0:
        console.print(Text(f"{earlier} earlier rounds: --json", "dim"))
    console.print(Text(f"adapters: {run['rounds'][-1]['adapter'] or 'none of the last round'}", "dim"))


def _short(value: Any) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.4g}"
        case dict():  # who declined, by reason
            return ", ".join(f"{count} {reason}" for reason, count in value.items()) or "0"
        case _:
            return str(value)


def _address(bind: str) -> tuple[str, int]:
    host, _, port = bind.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise BadInput(f"{bind} is no address to listen on.", f"Give one such as {DEFAULT_BIND}: --bind ADDR:PORT.")
    return host.strip("[]"), int(port)


def _overrides(words: list[str]) -> "dict[str, Value]":
    """As `flwr run --run-config` reads them. Raises BadInput."""
    import click
    from flwr.common.config import parse_config_args

    try:
        return dict(parse_config_args(words))
    except (ValueError, click.ClickException) as error:
        raise BadInput(
            f"The run config cannot be read: {error}.", "Example: -r 'num-server-rounds=5 strategy=\"fedprox\"'"
        ) from error
