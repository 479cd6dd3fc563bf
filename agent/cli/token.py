"""Tokens for the page and the HTTP API on other machines."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from agent.cli.command import Command, group, invocation

if TYPE_CHECKING:
    from agent.api.http.access.tokens import TokenStore
    from agent.config import StationConfig

TokenName = Annotated[str, typer.Argument(metavar="TOKEN", help="Its name or id, as `token list` shows it.")]


def register(app: typer.Typer) -> None:
    token = group("token", "Tokens that open the page and the HTTP API from other machines.")
    token.command("create", cls=Command, epilog="Example: so-agent token create phone --control -c station.yaml")(
        create
    )
    token.command("list", cls=Command, epilog="Example: so-agent token list -c station.yaml")(list_)
    token.command("revoke", cls=Command, epilog="Example: so-agent token revoke phone -c station.yaml")(revoke)
    app.add_typer(token)


def _store(config: "StationConfig") -> "TokenStore":
    from agent.api.http.access.tokens import TokenStore

    return TokenStore(config.paths.access)


def create(
    name: Annotated[str, typer.Argument(help="Who will use it, e.g. phone. It is shown as who has control.")],
    control: Annotated[
        bool, typer.Option("--control", help="It may take control of the arm. Without, it may look and stop.")
    ] = False,
) -> None:
    """Make a token and show it, once: only its hash is kept."""
    from agent.api.http.access.link import link, qr_lines, reach
    from agent.api.http.access.tokens import Role

    config = invocation().load()
    token, secret = _store(config).create(name, Role.CONTROL if control else Role.READ)
    address = link(config.http, secret)
    note = reach(config.http)
    shown = {"id": token.id, "name": token.name, "role": token.role, "token": secret, "link": address, "note": note}
    may = "look, stop and take control" if control else "look and stop"
    lines = [f"{token.name} may {may}. This is shown only once:", "", f"  {secret}", ""]
    if address:
        lines.append(f"Open {address}")
        if sys.stdout.isatty() and not note:
            lines += ["or point the phone's camera here:", "", *qr_lines(address)]
    if note:
        lines.append(note)
    invocation().show(shown, "\n".join(lines))


def list_() -> None:
    """Which tokens there are, without what makes them work."""
    tokens = _store(invocation().load()).all()
    if invocation().json:
        about = [
            {"id": token.id, "name": token.name, "role": token.role, "created_at": token.created_at} for token in tokens
        ]
        typer.echo(json.dumps(about))
        return
    if not tokens:
        typer.echo("No tokens. The page opens on this machine only.")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("id", "name", "may", "created"):
        table.add_column(column)
    for token in tokens:
        table.add_row(token.id, token.name, token.role, token.created_at)
    Console().print(table)


def revoke(token: TokenName) -> None:
    """Forget a token. Whoever uses it is out with their next request."""
    gone = _store(invocation().load()).revoke(token)
    invocation().show({"id": gone.id, "name": gone.name}, f"{gone.name} is revoked.")
