"""The virtual station with coloured discs, the agent on it, and a policy: what a person would start."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from agent.errors import AgentError
from agent.messages import JOINTS, Joints
from agent.virtual.client import inject
from agent.virtual.kinematics import Kinematics, Point
from agent.virtual.scene import SceneModel
from benchmarks.control_bench.agent_side import Daemon, ready
from benchmarks.control_bench.rig import Rig, wait_for

LOAD_S: Final = 300.0
DRIVE_S: Final = 40.0
POLL_S: Final = 0.03
THERE_DEG: Final = 3.0


class Table:
    """A context manager around the virtual hardware: two arms, cameras, coloured discs and cubes."""

    def __init__(self, folder: Path, discs: tuple[str, ...], cubes: tuple[str, ...]) -> None:
        self.scene = SceneModel("so101", discs, cubes)
        self.folder = folder
        self._kinematics = Kinematics(self.scene)
        objects = [*(f"--disc={colour}" for colour in discs), *(f"--cube={colour}" for colour in cubes)]
        self.rig = Rig(folder, rendered=True, objects=objects)

    def __enter__(self) -> Self:
        try:
            self.rig.start()
            self.inject(operator="pause")
        except BaseException:
            self.rig.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.rig.close()

    def inject(self, **payload: Any) -> dict[str, Any]:
        return inject(self.rig.config, payload)

    def lay(self, seed: int) -> None:
        """Lay the table as this seed has it."""
        self.inject(scene={"seed": seed})

    def place(self, where: Mapping[str, tuple[float, float]]) -> None:
        self.inject(scene={"place": dict(where)})

    def look(self) -> tuple[Point, Mapping[str, Point]]:
        """The fingertip and the middles of all objects, in metres."""
        state = self.inject(state=True)["state"]
        joints = state["arms"]["follower"]["joints"]
        pose: Joints = tuple(joints[name] for name in JOINTS)
        return self._kinematics.forward(pose), state["objects"]


class TaskStation:
    """A context manager around the agent on such a table, with one policy. `settings` as for `Rig.configuration`."""

    def __init__(self, table: Table, bundle: Path, name: str = "agent", **settings: Any) -> None:
        self.table = table
        self.policy = bundle.name
        there = table.rig.config.paths.policies / bundle.name
        if not there.exists():
            shutil.copytree(bundle, there)
        self._file = table.rig.configuration(name, **settings)
        self._daemon: Daemon | None = None

    def __enter__(self) -> Self:
        try:
            self._daemon = Daemon(self._file, self.table.folder / "agent.log")
            wait_for("cameras and recorder are ready", lambda: ready(self.daemon.status()), poll_s=0.05)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        if self._daemon:
            self._daemon.close()

    @property
    def daemon(self) -> Daemon:
        assert self._daemon  # noqa: S101 - inside the context
        return self._daemon

    def lead_to(self, pose: Joints) -> None:
        """Bring the follower to a pose by hand, and hold there."""
        self.table.inject(operator={"pose": pose})
        self.daemon.client.call("teleop.start")
        deadline = time.monotonic() + DRIVE_S
        while time.monotonic() < deadline:
            state = self.table.inject(state=True)["state"]
            there = [state["arms"]["follower"]["joints"][name] for name in JOINTS]
            status = self.daemon.client.call("status")
            if status["mode"] == "hold":  # a late leader reading on a busy host
                self.daemon.client.call("teleop.start")
            arrived = max(abs(a - b) for a, b in zip(there, pose, strict=True)) < THERE_DEG
            if status["mode"] == "teleop" and state["operator"]["doing"] == "waiting" and arrived:
                break
            time.sleep(POLL_S)
        self.daemon.client.call("hold")

    def start(self, task: str) -> None:
        self.daemon.client.call("task.start", {"task": task, "policy": self.policy}, timeout_s=LOAD_S)

    def stop(self) -> dict[str, Any]:
        """End the task; the status before. Raises AgentError when it had ended by itself."""
        status = self.daemon.client.call("status")
        if not status["task"]:
            raise AgentError(f"The task ended early: {(status['last_task'] or {}).get('over')}.")
        self.daemon.client.call("task.stop", timeout_s=30.0)
        return status

    def carry_out(self, task: str, seconds: float) -> dict[str, Any]:
        """Let the policy work for so long; the status at the end of it. Raises AgentError when it ended early."""
        self.start(task)
        time.sleep(seconds)
        return self.stop()
