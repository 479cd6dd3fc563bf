"""The virtual station and the agent on it, as two processes in one folder: what the demo and the experiments start."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from agent.api.local import Client
from agent.config import StationConfig, load
from agent.errors import DeviceFault, NotRunning
from agent.robot.recording.index import DatasetIndex
from agent.virtual.client import inject

ROOT: Final = Path(__file__).resolve().parents[2]
POLL_S: Final = 0.05

VIRTUAL_S: Final = 90.0
"""Compiling the scene and opening EGL takes 2 s on a desktop and 20 s on a small board."""

READY_S: Final = 180.0
"""A first start reads 500 MB of libraries from a cold disk."""

STOP_S: Final = 45.0
"""Parking, committing and leaving take 20 s at most."""

LOG_TAIL_CHARS: Final = 1500


class VirtualPair:
    """Both processes, the station's configuration and a client of its agent. Close it, or the processes stay.

    Everything it records stays in `folder`; its sockets and ports lie in a short-lived folder of their own.
    """

    def __init__(self, folder: Path, settings: Callable[[dict[str, Any]], None], model: str = "so101") -> None:
        """`settings` changes the values of the shipped virtual configuration, e.g. the name of the data set."""
        self.folder = folder.absolute()
        self._run_dir = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))  # a socket's path must be short
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "station.yaml"
        values = _values(model, self.folder, self._run_dir)
        settings(values)
        self.file.write_text(yaml.safe_dump(values, sort_keys=False))
        self.config: StationConfig = load(self.file)
        self.client = Client(self.config.paths.agent_socket)

    @property
    def index(self) -> DatasetIndex:
        return DatasetIndex(self.config.paths.dataset)

    def start_virtual(self, options: Sequence[str]) -> None:
        """The arms, cameras and objects. The hand at the leader keeps still until it is told something."""
        self._launch("virtual", "agent.virtual", "-c", str(self.file), *options)
        self.wait("the virtual station is ready", lambda: "ready" in self._log("virtual").read_text(), VIRTUAL_S)
        self.inject(operator="pause")

    def start_agent(self) -> None:
        self._launch("agent", "agent.cli", "run", "-c", str(self.file))
        self.wait("the agent is ready", self._is_ready, READY_S)

    def inject(self, **payload: Any) -> dict[str, Any]:
        return inject(self.config, payload)

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float) -> None:
        """Raises DeviceFault with the end of a log when a process has ended or time is up."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise DeviceFault(f"The {name} process ended early.", self._end_of_log(name))
            if time.monotonic() > deadline:
                raise DeviceFault(f"Not within {timeout_s:g} s: {what}.", self._end_of_log("agent"))
            time.sleep(POLL_S)

    def close(self) -> None:
        """The agent first: it parks the arm and commits, for which it needs the station."""
        for name in ("agent", "virtual"):
            process = self._processes.get(name)
            if process is None or process.poll() is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._run_dir, ignore_errors=True)

    def _is_ready(self) -> bool:
        with contextlib.suppress(NotRunning):
            status = self.client.call("status", timeout_s=2.0)
            return (
                status["mode"] in ("idle", "hold")
                and (status["recorder"] or {}).get("state") == "ready"
                and all(camera["state"] == "streaming" for camera in status["cameras"].values())
            )
        return False

    def _launch(self, name: str, module: str, *arguments: str) -> None:
        self._log(name).parent.mkdir(exist_ok=True)
        with self._log(name).open("wb") as log:
            # A session of its own: Ctrl-C comes here, and the arm is parked before anything ends.
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdout=log, stderr=log, start_new_session=True, cwd=ROOT, env=os.environ | {"MUJOCO_GL": "egl"},
            )  # fmt: skip

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _end_of_log(self, name: str) -> str:
        log = self._log(name)
        tail = log.read_text(errors="replace")[-LOG_TAIL_CHARS:] if log.exists() else ""
        return f"The end of {log}:\n{tail}"


def _values(model: str, folder: Path, run_dir: Path) -> dict[str, Any]:
    """The shipped virtual configuration, on free ports."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "configs" / model / "virtual.yaml").read_text())
    values["state_dir"] = str(folder)
    values["run_dir"] = str(run_dir)
    for arm in ("follower", "leader"):
        values["robot"][arm]["port"] = str(run_dir / arm)
    with contextlib.ExitStack() as stack:  # all at once, so that no two cameras get the same port
        for camera in values["cameras"].values():
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            camera["options"]["port"] = probe.getsockname()[1]
    return values
