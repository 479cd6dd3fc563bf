"""A whole station as a person would start it: the virtual hardware and the agent, as processes of their own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from agent.api.local import Client
from agent.config import StationConfig, load
from agent.errors import AgentError, NotRunning

ROOT = Path(__file__).resolve().parents[2]
MARK = "SO_AGENT_TEST_STATION"
"""In the environment of every process of one test's agent, so that its orphans can be found and ended."""

START_S = 120.0
"""A cold start takes 10 s on an idle machine; the suite's machine is not always idle."""


def free_ports(count: int) -> list[int]:
    """TCP ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def wait_for[T](what: str, probe: Callable[[], T | None], timeout_s: float = 20.0) -> T:
    """The first truthy value of `probe`. Fails with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := probe():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


class LiveStation:
    """Starts and stops the two programs, and speaks to both."""

    def __init__(self, folder: Path, model: str = "so101", cameras: bool = True, **settings: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        values = yaml.safe_load((ROOT / "configs" / model / "virtual.yaml").read_text())
        values["state_dir"] = str(folder / "state")
        for camera, port in zip(values["cameras"].values(), free_ports(len(values["cameras"])), strict=True):
            camera["options"]["port"] = port
        if not cameras:
            values["cameras"] = {}
        for path, value in settings.items():
            section = values
            *parents, leaf = path.split("__")
            for parent in parents:
                section = section[parent]
            section[leaf] = value
        self.file = folder / "station.yaml"
        self.file.write_text(yaml.safe_dump(values))
        self.config: StationConfig = load(self.file)
        self.client = Client(self.config.paths.agent_socket)
        self.wire_log = folder / "wire.log"
        self.virtual: subprocess.Popen[bytes] | None = None
        self.agent: subprocess.Popen[bytes] | None = None
        self.log = folder / "agent.log"
        self.program = "agent.cli"

    def start_virtual(self, *options: str) -> None:
        log = (self.folder / "virtual.log").open("ab")
        self.virtual = subprocess.Popen(
            [sys.executable, "-m", "agent.virtual", "-c", self.file, "--wire-log", self.wire_log, *options],
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
        )
        assert self.virtual.stdout
        line = self.virtual.stdout.readline().decode()
        assert "ready" in line, (self.folder / "virtual.log").read_text()

    def start_agent(self, wait: bool = True) -> None:
        self.agent = subprocess.Popen(
            [sys.executable, "-m", self.program, "run", "-c", self.file],
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {MARK: str(self.folder)},
        )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> dict[str, Any]:
        """Until the arm is under control, every camera streams and the recorder is ready."""

        def ready() -> dict[str, Any] | None:
            assert self.agent is None or self.agent.poll() is None, self.log.read_text()[-3000:]
            status = self.status()
            if (
                status
                and status["mode"] != "starting"
                and status["arm"]
                and (status["recorder"] or {}).get("state") == "ready"
                and all(camera["state"] == "streaming" for camera in (status["cameras"] or {}).values())
            ):
                return status
            return None

        try:
            return wait_for("station ready", ready, START_S)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.status()}\n{self.log.read_text()[-3000:]}") from None

    def status(self) -> dict[str, Any] | None:
        """None while nothing answers."""
        try:
            return self.client.call("status", timeout_s=5.0)
        except NotRunning:
            return None

    def wait_mode(self, *modes: str, timeout_s: float = 20.0) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            status = self.status()
            return status if status and status["mode"] in modes else None

        try:
            return wait_for(f"mode {' or '.join(modes)}", there, timeout_s)
        except AssertionError as error:
            status = self.status() or {}
            raise AssertionError(f"{error}; it is {status.get('mode')}: {status.get('reason')}") from None

    def calm(self) -> None:
        """Idle, healthy and undisturbed, whatever the test before did."""
        self.inject(clear=True)
        status = self.wait_ready()
        if status["mode"] in ("estop", "fault"):
            self.client.call("reset")
        if status["task"]:
            self.client.call("task.stop")
        elif status["recording"]:
            self.client.call("record.discard")
        if status["mode"] != "idle":
            self.client.call("release")
        self.wait_mode("idle")

    def teleop(self) -> None:
        """Start teleop the way a person does: the leader is kept still until the follower has reached it."""
        self.inject(operator="pause")
        self.client.call("teleop.start")
        # On a starved machine a leader reading may come late; the arm then holds and wants to be asked again.
        for _ in range(5):
            if self.wait_mode("teleop", "hold", timeout_s=40.0)["mode"] == "teleop":
                break
            self.client.call("teleop.start")
        self.wait_mode("teleop", timeout_s=1.0)
        self.inject(operator="resume")

    def joints(self) -> list[float]:
        """Where the follower really is, from the simulation. Degrees; gripper in percent."""
        return list(self.inject(state=True)["state"]["arms"]["follower"]["joints"].values())

    def inject(self, **payload: Any) -> dict[str, Any]:
        """Ask the virtual station for something: a fault, a scene, its state."""
        from agent.virtual.client import inject

        return inject(self.config, payload)

    def child_pid(self, name: str) -> int:
        def pid() -> int | None:
            status = self.status()
            return status["children"][name]["pid"] if status else None

        return wait_for(f"{name} runs", pid, START_S)

    def stop_agent(self) -> int:
        """Ask politely; the exit status."""
        assert self.agent
        self.agent.send_signal(signal.SIGTERM)
        status = self.agent.wait(40)
        self.agent = None
        return status

    def kill_agent(self) -> None:
        """SIGKILL of the daemon alone; what it leaves behind is the point of the test."""
        assert self.agent
        self.agent.kill()
        self.agent.wait()
        self.agent = None

    def descendants(self) -> list[int]:
        """Every live process that works for this station's agent, also after the agent was killed."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    environ = (entry / "environ").read_bytes()
                    if f"{MARK}={self.folder}\0".encode() in environ:
                        found.append(int(entry.name))
        return found

    def close(self) -> None:
        """End everything, also orphans of agents that were killed."""
        if self.agent and self.agent.poll() is None:
            with contextlib.suppress(AgentError, subprocess.TimeoutExpired):
                self.stop_agent()
        for process in (self.agent, self.virtual):
            if process and process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for pid in self.descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wire(self, skip: int = 0) -> list[dict[str, Any]]:
        """Every goal written on the servo buses so far, without the first `skip`. A half-written last line waits."""
        lines = self.wire_log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines[skip:] if line.endswith("\n")]
