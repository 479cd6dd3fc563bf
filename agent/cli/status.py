"""`so-agent status`: the whole station on one screen."""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

import typer
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agent.cli.command import Command, invocation
from agent.messages import JOINTS

WATCH_S: Final = 0.5
"""The arm reports twice a second; asking more often would show the same."""

MODE_STYLES: Final = {
    "starting": "black on cyan",
    "idle": "black on green",
    "aligning": "black on cyan",
    "teleop": "white on blue",
    "executing": "white on blue",
    "training": "white on magenta",
    "hold": "black on yellow",
    "homing": "black on cyan",
    "estop": "bold white on red",
    "fault": "bold white on red",
    "stopping": "black on cyan",
}

CAMERA_STYLES: Final = {"streaming": "green", "connecting": "yellow", "frozen": "red", "stalled": "red", "down": "red"}


def register(app: typer.Typer) -> None:
    app.command("status", cls=Command, epilog="Example: so-agent status --json")(status)


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until Ctrl-C.")] = False,
) -> None:
    """Show the mode and why, the arm, its servos, the cameras and the recorder."""
    if watch and not invocation().json:
        _watch()
        return
    while True:
        answer = invocation().call("status")
        if not invocation().json:
            Console().print(render(answer))
            return
        typer.echo(json.dumps(answer))  # with --watch: one object a line
        if not watch:
            return
        time.sleep(WATCH_S)


def _watch() -> None:
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            live.update(render(invocation().call("status")), refresh=True)
            time.sleep(WATCH_S)


def render(answer: Mapping[str, Any]) -> RenderableType:
    """The status object as a screen. Every part may be absent."""
    parts: list[RenderableType] = [_headline(answer)]
    if answer.get("recording"):
        parts.append(_recording(answer["recording"]))
    if answer.get("task"):
        from agent.cli.task import progress_line

        parts.append(progress_line(answer))
    arm, servos = answer.get("arm"), answer.get("servos") or {}
    parts.append(_arm(arm, servos) if arm else Text("  The arm process does not run.", "red"))
    boxes = [
        _cameras(answer.get("cameras") or {}),
        _policy(answer),
        _recorder(answer.get("recorder")),
        _children(answer.get("children")),
    ]
    parts.append(Columns([box for box in boxes if box is not None]))
    return Group(*parts)


def _headline(answer: Mapping[str, Any]) -> RenderableType:
    mode = str(answer["mode"])
    line = Text.assemble((f" {mode.upper()} ", MODE_STYLES.get(mode, "reverse")), "  ", str(answer["reason"]))
    about = Text(f"{answer.get('station', '')}  up {_duration(answer.get('uptime_s') or 0)}", "dim")
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(line, about)
    return grid


def _recording(recording: Mapping[str, Any]) -> RenderableType:
    from agent.cli.record import progress_line

    return Text.assemble(
        (" REC ", "bold white on red"), "  ", f"{recording['task']!r}  ", progress_line(dict(recording))
    )


def _arm(arm: Mapping[str, Any], servos: Mapping[str, Any]) -> RenderableType:
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("joint", style="bold", no_wrap=True)
    for name in ("measured", "sent", "°C", "V", "load %"):
        table.add_column(name, justify="right")
    table.add_column("torque")
    table.add_column("alarms")
    for number, joint in enumerate(JOINTS):
        servo = servos.get(joint, {})
        table.add_row(
            joint,
            _number(_at(arm.get("measured"), number)),
            _number(_at(arm.get("sent"), number)),
            _number(servo.get("temperature_c"), 0, warn_above=55.0),
            _number(servo.get("voltage_v")),
            _number(servo.get("load_pct"), 0, warn_above=80.0),
            _on_off(servo.get("torque_on")),
            Text(", ".join(servo.get("alarms", ())), "bold red"),
        )
    bus = [
        _flag("follower", bool(arm.get("bus_connected"))),
        _flag("leader", bool(arm.get("leader_connected")), arm.get("leader_reason") or ""),
    ]
    if arm.get("estop_verified") is not None:
        bus.append(_flag("e-stop read back", bool(arm["estop_verified"])))
    if arm.get("supervisor_lost"):
        bus.append(Text("supervisor lost", "bold red"))
    counts = (
        f"bus errors {arm.get('bus_errors', 0)}, reconnects {arm.get('reconnects', 0)}, limited {arm.get('limited', 0)}"
    )
    footer = Text("   ").join([*bus, Text(counts, "dim")])
    body: list[RenderableType] = [table, Text(), footer]
    if arm.get("loop"):
        body.append(_loop(arm["loop"]))
    return Panel(Group(*body), title=f"arm: {arm.get('drive', '')}", title_align="left", border_style="dim")


def _loop(loop: Mapping[str, Any]) -> Text:
    return Text.assemble(
        (f"{loop['rate_hz']:.2f} Hz", "bold"),
        f"   period error p50 {loop['period_error_p50_ms']:.2f}  p99 {loop['period_error_p99_ms']:.2f}"
        f"  max {loop['period_error_max_ms']:.2f} ms   overruns {loop['overruns']}   ",
        (str(loop["scheduling"]), "dim"),
    )


def _cameras(cameras: Mapping[str, Any]) -> RenderableType | None:
    if not cameras:
        return None
    table = Table(box=None, pad_edge=False)
    table.add_column("camera", style="bold")
    table.add_column("state")
    table.add_column("fps", justify="right")
    table.add_column("age", justify="right")
    for name, camera in cameras.items():
        state = str(camera.get("state", "down"))
        age = camera.get("age_ms")
        words = Text(state, CAMERA_STYLES.get(state, "yellow"))
        if camera.get("reason") and state != "streaming":
            words.append(f" {camera['reason']}", "dim")
        table.add_row(name, words, _number(camera.get("fps")), "-" if age is None else f"{age:.0f} ms")
    return Panel(table, title="cameras", title_align="left", border_style="dim")


def _policy(answer: Mapping[str, Any]) -> RenderableType | None:
    """What it is, how fast, and how its chunks fare in the arm."""
    policy = answer.get("policy")
    if not policy or not policy.get("policy"):
        return None
    execution = policy.get("execution") or {}
    lines = [
        Text.assemble((str(policy["policy"]), "bold"), f" {policy.get('hash') or ''}  {policy.get('engine') or ''}"),
        Text(f"{policy['state']}: {policy['reason']}"),
    ]
    if policy.get("delay_p95_s") is not None:
        lines.append(
            Text(
                f"delay p50 {policy['delay_p50_s'] * 1e3:.0f}  p95 {policy['delay_p95_s'] * 1e3:.0f} ms,"
                f" {policy['chunks']} chunks, {policy['failures']} failed"
            )
        )
        lines.append(Text(str(policy["verdict"]), "dim"))
    if execution:
        style = "bold red" if execution["starved"] else "yellow" if execution["starved_ticks"] else ""
        lines.append(
            Text(
                f"queue {execution['depth']}, starved {execution['starved_ticks']} of {execution['ticks']} ticks,"
                f" seam {execution['seam']:.2f} (max {execution['seam_max']:.2f})",
                style,
            )
        )
    return Panel(Group(*lines), title="policy", title_align="left", border_style="dim")


def _recorder(recorder: Mapping[str, Any] | None) -> RenderableType | None:
    if recorder is None:
        return Panel(Text("does not run", "red"), title="recorder", title_align="left", border_style="dim")
    lines = [
        f"{recorder['state']}{': ' + recorder['reason'] if recorder.get('reason') else ''}",
        f"{recorder['episodes']} episodes"
        + (f", {recorder['salvaged']} salvaged at start" if recorder.get("salvaged") else ""),
        f"{recorder.get('free_bytes', 0) / 1e9:.0f} GB free",
    ]
    last = recorder.get("last")
    if last:
        number = "" if last["episode"] is None else f" {last['episode']}"
        lines.append(f"last: {last['outcome']}{number}, {last['frames']} frames {last.get('reason') or ''}".rstrip())
    return Panel(Text("\n".join(lines)), title="recorder", title_align="left", border_style="dim")


def _children(children: Mapping[str, Any] | None) -> RenderableType | None:
    """Only what a person should know: a child that restarted or gave up."""
    lines = [
        Text(f"{name}: {child['failed'] or child['last_exit']} ({child['restarts']} restarts)", "yellow")
        for name, child in (children or {}).items()
        if child.get("failed") or child.get("restarts")
    ]
    return Panel(Group(*lines), title="restarts", title_align="left", border_style="yellow") if lines else None


def _at(values: Any, number: int) -> float | None:
    return values[number] if values else None


def _number(value: float | None, digits: int = 1, warn_above: float | None = None) -> Text:
    if value is None:
        return Text("-", "dim")
    return Text(f"{value:.{digits}f}", "yellow" if warn_above is not None and value > warn_above else "")


def _on_off(value: bool | None) -> Text:
    return Text("-", "dim") if value is None else Text("on" if value else "off", "green" if value else "dim")


def _flag(name: str, good: bool, reason: str = "") -> Text:
    text = Text(f"{'●' if good else '○'} {name}", "green" if good else "red")
    return text.append(f" ({reason})", "dim") if reason and not good else text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    pieces: Iterable[tuple[int, str]] = ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s"))
    kept = [f"{amount} {unit}" for amount, unit in pieces if amount][:2]
    return " ".join(kept) or "0 s"
