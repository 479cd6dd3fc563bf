"""This agent, started as a person starts it: the daemon with its processes, asked through its socket."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.api.local import Client
from agent.config import StationConfig, load
from agent.errors import NotRunning
from agent.messages import ArmReport, Tick
from agent.transport import Subscriber
from benchmarks.control_bench.host import children_of, command, cpu_between, cpu_s, end, kill_all, resident_mb
from benchmarks.control_bench.lerobot_side import TASK
from benchmarks.control_bench.rig import ROOT, BenchError, wait_for

SETTLE_S: Final = 1.0
"""Between following the leader and the first recorded row, as long as lerobot's cameras warm up."""

PARK_AND_EXIT_S: Final = 40.0
BACK_S: Final = 15.0

_FROM_ARM: msgspec.msgpack.Decoder[Tick | ArmReport] = msgspec.msgpack.Decoder(Tick | ArmReport)


@dataclass(frozen=True)
class AgentRun:
    """What to record, and where stock lerobot will look at it afterwards."""

    config: Path
    copy: Path
    seconds: float
    kill_arm: bool = True


class Daemon:
    """One `so-agent run`, and everything it starts."""

    def __init__(self, config_file: Path, log: Path) -> None:
        self.config: StationConfig = load(config_file)
        self.client = Client(self.config.paths.agent_socket)
        self.log = log
        self.started = time.monotonic()
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agent.cli", "run", "-c", str(config_file)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        self.pid = self._process.pid

    def status(self) -> dict[str, Any] | None:
        if self._process.poll() is not None:
            raise BenchError(f"the agent ended:\n{self.log.read_text()[-2000:]}")
        try:
            return self.client.call("status", timeout_s=5.0)
        except NotRunning:
            return None

    def since_start_s(self) -> float:
        return time.monotonic() - self.started

    def processes(self) -> list[int]:
        return children_of(self.pid)

    def wait_mode(self, mode: str) -> None:
        wait_for(f"mode {mode}", lambda: (status := self.status()) and status["mode"] == mode)

    def close(self) -> None:
        """Park and leave; whatever is still there then is killed."""
        mine = self.processes()
        end(self._process, PARK_AND_EXIT_S)
        kill_all(mine)


def ready(status: dict[str, Any] | None) -> bool:
    return bool(
        status
        and (status["recorder"] or {}).get("state") == "ready"
        and all(camera["state"] == "streaming" for camera in (status["cameras"] or {}).values())
    )


def record(run: AgentRun, log: Path) -> dict[str, Any]:
    """Start the agent, record one episode, kill its arm process, stop the agent. Times in ns of CLOCK_MONOTONIC."""
    daemon = Daemon(run.config, log)
    try:
        result = _start(daemon)
        result |= _episode(daemon, run)
        if run.kill_arm:
            result["arm_back_s"] = _kill_arm(daemon)
        return result
    finally:
        daemon.close()


def _start(daemon: Daemon) -> dict[str, Any]:
    wait_for("the agent's socket answers", daemon.status, poll_s=0.01)
    socket_s = daemon.since_start_s()
    wait_for(
        "the arm is under control",
        lambda: (status := daemon.status()) and status["arm"] and status["arm"]["bus_connected"],
        poll_s=0.05,
    )
    arm_s = daemon.since_start_s()
    wait_for("cameras and recorder are ready", lambda: ready(daemon.status()), poll_s=0.05)
    return {"socket_s": socket_s, "arm_s": arm_s, "ready_s": daemon.since_start_s()}


def _episode(daemon: Daemon, run: AgentRun) -> dict[str, Any]:
    daemon.client.call("teleop.start")
    daemon.wait_mode("teleop")
    time.sleep(SETTLE_S)
    overruns = loop_account(daemon)["overruns"]
    daemon.client.call("record.start", {"task": TASK})
    before = cpu_s(daemon.processes())
    begin_ns = time.monotonic_ns()
    time.sleep(run.seconds)
    recorded = cpu_s(daemon.processes())
    stop_ns = time.monotonic_ns()
    summary = daemon.client.call("record.stop", timeout_s=60.0)
    readable_ns = time.monotonic_ns()
    saved = cpu_s(daemon.processes())
    if not summary["results"] or summary["results"][0]["outcome"] != "committed":
        raise BenchError(f"the episode was not committed: {summary}")
    shutil.copytree(daemon.config.paths.dataset, run.copy)
    episode = summary["results"][0]
    loop = loop_account(daemon)
    return {
        "begin_ns": begin_ns,
        "stop_ns": stop_ns,
        "readable_ns": readable_ns,
        "cpu_recording_s": cpu_between(before, recorded),
        "cpu_saving_s": cpu_between(recorded, saved),
        "cpu_by_process_s": {
            f"{pid} {command(pid)}": round(used - before.get(pid, 0.0), 2) for pid, used in recorded.items()
        },
        "rows": episode["frames"],
        "repeats": episode["repeats"],
        "recorder_stop_to_readable_s": episode["stop_to_readable_s"],
        "own_loop": loop,
        "overruns": loop["overruns"] - overruns,
        "daemon_mb": resident_mb(daemon.pid),
    }


def loop_account(daemon: Daemon) -> dict[str, Any]:
    """The control loop's own account of its last 20 s."""
    status = daemon.status()
    if not status or not status["arm"] or not status["arm"]["loop"]:
        raise BenchError("the arm process reports no timing")
    loop: dict[str, Any] = status["arm"]["loop"]
    return loop


def _kill_arm(daemon: Daemon) -> float:
    """Seconds from SIGKILL of the arm process to the first joints that its successor read."""
    status = daemon.status()
    assert status  # noqa: S101 - it has just answered
    subscriber = Subscriber(daemon.config.paths.arm_pub)
    try:
        if subscriber.receive(5.0) is None:
            raise BenchError("the arm process publishes nothing")
        pid = status["children"]["arm"]["pid"]
        os.kill(pid, 9)
        killed_ns = time.monotonic_ns()
        while (parts := subscriber.receive(BACK_S)) is not None:
            message = _FROM_ARM.decode(parts[0].buffer)
            # A reading that was under way when the signal came is its predecessor's.
            if isinstance(message, Tick) and message.measured and message.read_ns > killed_ns + 5_000_000:
                return (message.read_ns - killed_ns) / 1e9
        raise BenchError("the arm did not come back after its process was killed")
    finally:
        subscriber.close()
