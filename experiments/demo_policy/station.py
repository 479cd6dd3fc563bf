"""The virtual station and the agent as processes, and a hand at the leader: what a person would use to record."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml

from agent.api.local import Client
from agent.config import StationConfig, load
from agent.errors import DeviceFault, NotRunning
from agent.messages import JOINTS, Joints
from agent.robot.recording.index import DatasetIndex
from agent.virtual.client import inject
from experiments.demo_policy.recipe import CUBES, DISCS

ROOT: Final = Path(__file__).resolve().parents[2]
POLL_S: Final = 0.05
START_S: Final = 180.0  # a first start reads 500 MB of libraries
DRIVE_S: Final = 60.0
MOVE_S: Final = 15.0
COMMIT_S: Final = 60.0
STOP_S: Final = 45.0
LOG_TAIL_CHARS: Final = 1500


class RecordingStation:
    """A context manager around both processes. Everything it records stays in `folder`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder.absolute()
        self._seed = seed
        self._run_dir = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))  # a socket's path must be short
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / "station.yaml"
        file.write_text(yaml.safe_dump(self._settings(), sort_keys=False))
        self._file = file
        self.config: StationConfig = load(file)
        self.client = Client(self.config.paths.agent_socket)

    def __enter__(self) -> Self:
        objects = [*(f"--disc={colour}" for colour in DISCS), *(f"--cube={colour}" for colour in CUBES)]
        try:
            self._launch("virtual", "agent.virtual", "-c", str(self._file), "--seed", str(self._seed), *objects)
            self.wait("the virtual station is ready", lambda: "ready" in self._log("virtual").read_text(), START_S)
            self.inject(operator="pause")
            self._launch("agent", "agent.cli", "run", "-c", str(self._file))
            self.wait("the agent is ready", self._is_ready, START_S)
            self.teleop()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()

    @property
    def index(self) -> DatasetIndex:
        return DatasetIndex(self.config.paths.dataset)

    def inject(self, **payload: Any) -> dict[str, Any]:
        return inject(self.config, payload)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.inject(state=True)["state"]
        return state

    def teleop(self) -> None:
        """The follower onto the leader, which keeps still meanwhile."""
        self.inject(operator="pause")
        self.client.call("teleop.start")
        self.wait("the follower follows", lambda: self.mode() == "teleop", DRIVE_S)

    def mode(self) -> str:
        return str(self.client.call("status")["mode"])

    def follower(self) -> Joints:
        joints = self.state()["arms"]["follower"]["joints"]
        return tuple(joints[name] for name in JOINTS)  # type: ignore[return-value]

    def wait_for_hand(self) -> None:
        """Until the hand has done what it was told."""
        self.wait("the hand is there", lambda: self.state()["operator"]["doing"] == "waiting", MOVE_S)

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise DeviceFault(f"The {name} process ended early.", self._end_of_log(name))
            if time.monotonic() > deadline:
                raise DeviceFault(f"Not within {timeout_s:g} s: {what}.", self._end_of_log("agent"))
            time.sleep(POLL_S)

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
        return self._folder / "logs" / f"{name}.log"

    def _end_of_log(self, name: str) -> str:
        log = self._log(name)
        tail = log.read_text(errors="replace")[-LOG_TAIL_CHARS:] if log.exists() else ""
        return f"The end of {log}:\n{tail}"

    def _close(self) -> None:
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

    def _settings(self) -> dict[str, Any]:
        """The shipped virtual configuration, in a folder of its own and on free ports."""
        values: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "so101" / "virtual.yaml").read_text())
        values["station"] = "demo-policy"
        values["state_dir"] = str(self._folder)
        values["run_dir"] = str(self._run_dir)
        values["recording"]["dataset"] = "reach"
        for arm in ("follower", "leader"):
            values["robot"][arm]["port"] = str(self._run_dir / arm)
        with contextlib.ExitStack() as stack:  # all at once, so that no two cameras get the same port
            for camera in values["cameras"].values():
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", 0))
                camera["options"]["port"] = probe.getsockname()[1]
        return values
