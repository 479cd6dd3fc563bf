"""This station in a fleet: enrol it, say what may be learnt from, see how it goes. Works without a running agent."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent.cli.command import Command, group, invocation
from agent.errors import BadInput, NotRunning

if TYPE_CHECKING:
    from agent.fl.membership import Membership

STATE_STYLES: Final = {
    "off": "dim",
    "waiting": "yellow",
    "joining": "cyan",
    "online": "green",
    "working": "magenta",
    "finishing": "magenta",
}


def register(app: typer.Typer) -> None:
    fl = group("fl", "Learn one policy with the stations of a fleet, in the hours in which nobody needs the arm.")
    fl.command(
        "enroll", cls=Command, epilog="Example: so-agent fl enroll --superlink fleet.example.org:9443 --ca ca.crt"
    )(enroll)
    fl.command("status", cls=Command, epilog="Example: so-agent fl status --json")(status)
    fl.command("consent", cls=Command, epilog="Example: so-agent fl consent kitchen")(consent)
    fl.command("pause", cls=Command, epilog="Example: so-agent fl pause")(pause)
    fl.command("resume", cls=Command, epilog="Example: so-agent fl resume --now")(resume)
    fl.command("rollback", cls=Command, epilog="Example: so-agent fl rollback")(rollback)
    fl.command("leave", cls=Command, epilog="Example: so-agent fl leave")(leave)
    app.add_typer(fl)


def enroll(
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the fleet is served.")],
    ca: Annotated[Path, typer.Option(metavar="FILE", help="The fleet's ca.crt: the one authority that is trusted.")],
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A private key (ECDSA, OpenSSH); default: make one here.")
    ] = None,
) -> None:
    """Enrol this station in a fleet, and print the key that the fleet has to register. Nothing is learnt from yet."""
    request = {"superlink": superlink, "ca": _read(ca), "key": _read(key) if key else None}
    answer = _ask("fl.enroll", request, lambda membership: _enroll(membership, request))
    lines = [
        f"This station is enrolled with {answer['superlink']}. Its key is {answer['fingerprint']}:",
        "",
        answer["public_key"],
        "",
        "On the fleet's machine, with this line in a file:",
        f"  so-agent fleet add-station {answer['public_key'].split()[-1]} --key FILE",
        "Here, so that something can be learnt from: so-agent fl consent DATASET",
    ]
    invocation().show(answer, "\n".join(lines))


def status() -> None:
    """Whether this station takes part right now, and why not."""
    answer = _ask("fl.status", {}, _offline_status)
    if invocation().json:
        typer.echo(json.dumps(answer))
        return
    _print(answer)


def consent(
    dataset: Annotated[
        str | None, typer.Argument(metavar="DATASET", help="A dataset of this station; default: show all.")
    ] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="It may no longer be learnt from.")] = False,
) -> None:
    """Say which datasets may be learnt from. Episodes never leave; what was learnt from them does, as an adapter."""
    if dataset is None and withdraw:
        raise BadInput("Which dataset?", "Name it: so-agent fl consent DATASET --withdraw.")
    request: dict[str, Any] = {} if dataset is None else {"dataset": dataset, "on": not withdraw}

    def offline(membership: "Membership") -> dict[str, Any]:
        from agent.fl.federation import consents

        if dataset is not None:
            membership.give_consent(dataset, not withdraw)
        return consents(membership)

    answer = _ask("fl.consent", request, offline)
    lines = [
        f"{name}: {'may be learnt from since ' + since if since else 'is not learnt from'}"
        for name, since in answer["consent"].items()
    ]
    invocation().show(answer, "\n".join(lines) or "There are no datasets yet.")


def pause() -> None:
    """Stay away from rounds until `fl resume`; a round under way gets what was done so far."""
    _ask("fl.pause", {}, lambda membership: _paused(membership, True))
    invocation().show({"paused": True}, "Paused. Go on with `so-agent fl resume`.")


def resume(
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait until the arm has been idle for federation.idle_min.")
    ] = False,
) -> None:
    """Take part again."""
    request = {"now": True} if now else {}
    answer = _ask("fl.resume", request, lambda membership: _paused(membership, False))
    against = answer.get("against") or []
    sentence = f"Not yet: {against[0]}." if against else "Joining."
    invocation().show({"paused": False, "against": against}, sentence)


def rollback() -> None:
    """Use the policy before the one that a run led to. The promoted one stays in `policy list`."""

    def offline(membership: "Membership") -> dict[str, Any]:
        from agent.clock import SystemClock
        from agent.fl.promotion import Promotion

        promotion = Promotion(invocation().load(), SystemClock(), lambda text, data: None)
        left, taken = promotion.rollback("fl rollback was asked for")
        return {"policy": taken, "instead_of": left}

    answer = _ask("fl.rollback", {}, offline)
    invocation().show(answer, f"Tasks run {answer['policy']} again instead of {answer['instead_of']}.")


def leave() -> None:
    """Take part no longer. The key is kept; what was learnt so far stays in the policies of this station."""

    def offline(membership: "Membership") -> dict[str, Any]:
        membership.leave()
        return {"enrolled": False}

    _ask("fl.leave", {}, offline)
    invocation().show({"enrolled": False}, "This station takes part in no fleet any more.")


def _ask(verb: str, args: dict[str, Any], offline: "Callable[[Membership], dict[str, Any]]") -> dict[str, Any]:
    """Through the agent, who owns the files while it runs; on the files themselves when it does not."""
    try:
        return invocation().call(verb, args)
    except NotRunning:
        from agent.clock import SystemClock
        from agent.fl.membership import Membership

        return offline(Membership(invocation().load(), SystemClock()))


def _enroll(membership: "Membership", request: dict[str, Any]) -> dict[str, Any]:
    import msgspec

    enrolment = membership.enroll(request["superlink"], request["ca"], request["key"])
    return {**msgspec.structs.asdict(enrolment), "public_key": membership.public_line()}


def _paused(membership: "Membership", paused: bool) -> dict[str, Any]:
    membership.pause(paused)
    return {"paused": paused, "against": [] if paused else ["the agent does not run: `so-agent run`"]}


def _offline_status(membership: "Membership") -> dict[str, Any]:
    from agent.fl.cost import Cost

    enrolment = membership.enrolment
    against = ["the agent does not run: `so-agent run`"]
    if enrolment is None:
        against.insert(0, "this station takes part in no fleet: `so-agent fl enroll`")
    return {
        "enrolled": enrolment is not None,
        "superlink": enrolment.superlink if enrolment else None,
        "key": enrolment.fingerprint if enrolment else None,
        "paused": bool(enrolment and enrolment.paused),
        "state": "off",
        "reason": against[0],
        "against": against,
        "consent": sorted(membership.consent.datasets),
        "round_bytes": Cost(invocation().load()).round_bytes(),
    }


def _megabytes(size: int | None) -> str | None:
    return None if size is None else f"{size / 1e6:.2f} MB, and receives as much (the policy in use, default adapter)"


def _trainers(found: dict[str, Any] | None) -> str | None:
    """What they can reach, as the agent found out when it last joined."""
    if not found:
        return None
    files = "files on their list only" if found["landlock"] else "whatever files that user may"
    devices = ", ".join(found["devices"]) or "no arm and no camera"
    return f"run as {found['user']}, and can open {files}, and {devices}"


def _print(answer: dict[str, Any]) -> None:
    console = Console()
    state = str(answer["state"])
    console.print(
        Text.assemble((f" {state.upper()} ", f"reverse {STATE_STYLES.get(state, '')}"), "  ", str(answer["reason"]))
    )
    for reason in answer.get("against") or ():
        if reason != answer["reason"]:
            console.print(Text(f"  and {reason}", "dim"))
    progress = answer.get("progress")
    if progress:
        loss = "" if progress["loss"] is None else f", loss {progress['loss']:.4f}"
        console.print(
            f"  {progress['run']}: round {progress['round']} of {progress['rounds']}, {progress['doing']}, "
            f"step {progress['step']} of {progress['steps']}{loss}"
        )
    table = Table.grid(padding=(0, 2))
    rows = [
        ("fleet", answer.get("superlink")),
        ("key", answer.get("key")),
        ("learns from", ", ".join(answer.get("consent") or ()) or "nothing yet"),
        ("a round sends", _megabytes(answer.get("round_bytes"))),
        ("messages", answer.get("messages")),
        ("made way", answer.get("preempted")),
        ("trainers", _trainers((answer.get("isolation") or {}).get("trainer"))),
        ("refused", answer.get("refused")),
        ("tasks run", (answer.get("promotion") or {}).get("in_use")),
    ]
    for name, value in rows:
        if value is not None:
            table.add_row(Text(name, "bold"), str(value))
    console.print(table)
    for each in (answer.get("promotion") or {}).get("candidates") or ():
        style = {"promoted": "green", "worse": "yellow", "failed": "red"}.get(each["outcome"], "")
        console.print(Text.assemble(f"  {each['run']}: ", (each["outcome"], style), f", {each['reason']}"))


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise BadInput(f"Cannot read {path}: {why}.", "Give the path of a file.") from error
