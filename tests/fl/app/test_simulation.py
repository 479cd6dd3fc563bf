"""The whole of it: `flwr run` with simulated stations, as a person starts it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.fl.adapter import check_fits, open_adapter, policy_from
from agent.fl.app import write_app
from agent.inference.bundle import Bundle

STATIONS = 3
START_S = 60.0
RUN_S = 500.0


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A SuperLink that simulates, as `flwr run` starts one for `:local:`, but on ports of its own. Yields the
    environment for `flwr`."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    home = tmp_path / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.test]\naddress = "127.0.0.1:{ports[0]}"\ninsecure = true\n')
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {
        "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    command = [
        "flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1",
        "--port", str(ports[0]), "--control-api-address", f"127.0.0.1:{ports[1]}",
        "--log-file", str(tmp_path / "superlink.log"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/health", timeout=1):
                    break
            except OSError:
                assert process.poll() is None, (tmp_path / "superlink.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        _end_all_with(f"FLWR_HOME={home}")


def _end_all_with(variable: str) -> None:
    """Ray's processes are in sessions of their own, and outlive a SuperLink that is ended before the run is."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in environ.read_bytes().split(b"\0"):
                os.kill(int(environ.parent.name), signal.SIGKILL)
        except OSError:
            continue  # it has ended, or is not ours


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_flwr_run_simulates_stations_that_learn_together(
    superlink: dict[str, str], tmp_path: Path, base: Bundle, dataset: Path
) -> None:
    config = {
        "name": "simulated", "policy": str(base.folder), "dataset": str(dataset), "output": str(tmp_path / "fleet"),
        "num-server-rounds": 2, "local-steps": 10, "batch-size": 4, "learning-rate": 1e-2, "adapter-rank": 4,
        "held-out": 0.5, "partition": "task", "min-available-nodes": STATIONS,
    }  # fmt: skip
    given = " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())
    # In a folder without code: Flower would walk through all of the repository's environment.
    command = [
        "flwr", "run", str(write_app(tmp_path / "app")), "test", "--stream", "--run-config", given,
        "--federation-config", f"num-supernodes={STATIONS} client-resources-num-cpus=1",
    ]  # fmt: skip
    done = subprocess.run(
        command, env=superlink, capture_output=True, text=True, timeout=RUN_S, cwd=tmp_path, check=False
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    assert "done; the last adapter is in" in log, log
    folder = tmp_path / "fleet" / "simulated"
    rounds = json.loads((folder / "curve.json").read_text())
    assert [(each["round"], each["used"]) for each in rounds] == [(0, 0), (1, STATIONS), (2, STATIONS)]
    losses = [each["held_out_loss"] for each in rounds]
    assert losses[2] < losses[0]
    assert (folder / "curve.png").stat().st_size > 10_000
    last = open_adapter(folder / "rounds" / "000002" / "adapter")
    check_fits(last, base)
    assert policy_from(last, base, tmp_path / "policies", "together").manifest.chunk_size == base.manifest.chunk_size
