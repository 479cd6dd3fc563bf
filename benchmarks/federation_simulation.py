"""A federation of simulated stations on this machine: `flwr run` and a SuperLink of its own, which is gone afterwards.

    python -m benchmarks.federation_simulation [--stations N] [--output DIR] [NAME=VALUE ...]

NAME=VALUE are settings of the run (docs/federation-app.md). Without a dataset, one is drawn. The curve of the losses is
in DIR/simulation/.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from agent.fl.app import write_app
from agent.fl.run_folder import Round, RunFolder
from agent.fl.settings import defaults

START_S: Final = 120.0
END_S: Final = 20.0
NAME: Final = "simulation"
DONE: Final = "done; the last adapter is in"
"""What the ServerApp says last: `flwr run` itself succeeds whatever becomes of the run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stations", type=int, default=10, metavar="N", help="10")
    parser.add_argument("--output", type=Path, default=Path("federation-output"), metavar="DIR")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    asked = parser.parse_args()
    output = asked.output.resolve()
    settings: dict[str, object] = {"name": NAME, "num-server-rounds": 5, "local-steps": 10}
    settings |= dict(_setting(each) for each in asked.settings)
    settings |= {"output": str(output), "min-available-nodes": asked.stations}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as work, superlink(Path(work)) as environment:
        if not run(Path(work), environment, asked.stations, settings):
            raise SystemExit("The run did not come to its end; what it said is above.")
    folder = RunFolder(output / str(settings["name"]))
    console = Console(width=None if Console().is_terminal else 100)
    console.print(drawn(folder.rounds()))
    console.print(f"{asked.stations} stations, {time.monotonic() - begin:.0f} s in all; {folder.folder / 'curve.png'}")


def run(
    work: Path,
    environment: Mapping[str, str],
    stations: int,
    settings: Mapping[str, object],
    timeout_s: float | None = None,
) -> bool:
    """`flwr run`, with its log on standard output; whether the run came to its end.

    The app is in a folder by itself: Flower would walk through all of the repository's environment, for half a minute.
    """
    given = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
    command = [
        "flwr", "run", str(write_app(work / "app")), NAME, "--stream", "--run-config", given,
        "--federation-config", f"num-supernodes={stations} client-resources-num-cpus=1",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=work
    )
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    until_s, done = time.monotonic() + (timeout_s or float("inf")), False
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            done = done or DONE in line
            if time.monotonic() > until_s:
                break
    finally:
        process.kill()
        process.wait()
    return done


@contextmanager
def superlink(work: Path) -> Iterator[dict[str, str]]:
    """A SuperLink that simulates, as `flwr run` starts one for `:local:`, on ports of its own. Yields the environment
    for `flwr`."""
    ports = _free_ports(2)
    home = work / "flwr"
    home.mkdir(parents=True)
    (home / "config.toml").write_text(f'[superlink.{NAME}]\naddress = "127.0.0.1:{ports[0]}"\ninsecure = true\n')
    environment = os.environ | {
        "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    log = work / "superlink.log"
    command = [
        "flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1",
        "--port", str(ports[0]), "--control-api-address", f"127.0.0.1:{ports[1]}", "--log-file", str(log),
        "--disable-runtime-dependency-installation",  # else it fetches all of pyproject's for each run: 5.6 GB
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait(process, f"http://127.0.0.1:{ports[0]}/health", log)
        yield environment
    finally:
        _end(process, f"FLWR_HOME={home}")


def drawn(rounds: list[Round]) -> Table:
    table = Table(title="A federation of simulated stations")
    for name in ("round", "stations", "rows", "seconds", "kB a station", "training loss", "held-out loss"):
        table.add_column(name, justify="right")
    for each in rounds:
        table.add_row(
            str(each.round), str(each.used), f"{each.rows:.0f}", f"{each.seconds:.0f}",
            f"{each.bytes_from_station / 1000:.0f}", _loss(each.train_loss), _loss(each.held_out_loss),
        )  # fmt: skip
    return table


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _setting(text: str) -> tuple[str, object]:
    """A number where the default is one."""
    name, _, value = text.partition("=")
    if name not in defaults():
        raise SystemExit(f"There is no setting {name}. There are {', '.join(defaults())}.")
    return name, value if isinstance(defaults()[name], str) else json.loads(value)


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def _wait(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    until_s = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(address, timeout=1):  # noqa: S310 - loopback
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > until_s:
                text = log.read_text() if log.exists() else "no log"
                raise SystemExit(f"flower-superlink does not begin: {text}") from None
            time.sleep(0.2)


def _end(process: "subprocess.Popen[bytes]", variable: str) -> None:
    """The SuperLink, and what it has started: Ray's processes are in sessions of their own, and outlive it."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in environ.read_bytes().split(b"\0"):
                os.kill(int(environ.parent.name), signal.SIGKILL)
        except OSError:
            continue  # it has ended, or is not ours


if __name__ == "__main__":
    main()
