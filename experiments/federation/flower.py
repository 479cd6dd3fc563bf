"""The federated run: `flwr run` of the agent's own app, with Flower's simulation engine, as docs/federation.md has it.

Its SuperLink is one of our own, on free ports and with a home of its own, so that it ends when the run does.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from agent.errors import Fatal
from agent.fl.app import write_app
from agent.fl.run_folder import RunFolder

CONNECTION: Final = "proof"
START_S: Final = 180.0  # a first start reads 500 MB of libraries
STOP_S: Final = 30.0
LOOK_S: Final = 2.0
LOG_TAIL_CHARS: Final = 3000


def run(out: Path, config: dict[str, Any], stations: int, progress: Callable[[int], None]) -> RunFolder:
    """The whole run, or what is left of it. `progress` hears how many rounds are done. Raises Fatal when it fails."""
    folder = RunFolder(Path(config["output"]) / config["name"])
    rounds = int(config["num-server-rounds"])
    if _done(folder) >= rounds:
        return folder
    work = out / "flower"
    app = write_app(work / "app")
    given = " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())
    # One after the other: a simulated station may have all the machine's cores, and uses one.
    resources = f"num-supernodes={stations} client-resources-num-cpus={os.cpu_count() or 1}"
    command = ["flwr", "run", str(app), CONNECTION, "--stream", "--run-config", given, "--federation-config", resources]
    log = work / "run.log"
    with _superlink(work, out / "tables") as environment, log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=work
        )
        seen = -1
        try:
            while process.poll() is None:
                if (done := _done(folder)) != seen:
                    progress(done)
                    seen = done
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(STOP_S)
    if process.returncode or _done(folder) < rounds:
        raise Fatal("The federated run failed.", f"{log} ends with:\n{log.read_text()[-LOG_TAIL_CHARS:]}")
    progress(rounds)
    return folder


def _done(folder: RunFolder) -> int:
    return folder.last().manifest.round if folder.common() else 0


@contextlib.contextmanager
def _superlink(work: Path, tables: Path) -> Iterator[dict[str, str]]:
    """The environment in which `flwr` finds it."""
    ports = [_free_port() for _ in range(2)]
    home = work / "home"
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{ports[0]}"\ninsecure = true\n', encoding="utf-8"
    )
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tables),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = work / "superlink.log"
    command = [
        "flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1",
        "--port", str(ports[0]), "--control-api-address", f"127.0.0.1:{ports[1]}", "--log-file", str(log),
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # with all that it starts
    )
    try:
        _wait_until_healthy(process, ports[0], log)
        yield environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                end = log.read_text()[-LOG_TAIL_CHARS:] if log.exists() else ""
                raise Fatal("The SuperLink did not start.", f"{log} ends with:\n{end}") from None
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
