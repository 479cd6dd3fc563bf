"""What both sides share: one folder, one virtual station, one configuration, one log of the wire."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import yaml

from agent.config import StationConfig, load
from benchmarks.control_bench.host import end, is_realtime

ROOT: Final = Path(__file__).resolve().parents[2]

SEED: Final = 1
"""Of the virtual scene and its operator: the same motion for both sides."""

START_S: Final = 120.0
"""Everything is ready after 10 s on a quiet machine; a busy one must not make the benchmark fail."""

WIRE_LOG_DIR: Final = Path("/dev/shm")  # noqa: S108
"""In memory: the thread that answers on the bus writes the log, and must not wait for a disk that a side flushes."""

ALIGN_DEG_S: Final = 90.0
"""Three times the usual pace for aligning and parking: both lie outside what is measured, and take most of a run."""


class BenchError(RuntimeError):
    """The benchmark cannot go on; says what did not happen."""


def free_ports(count: int) -> list[int]:
    """TCP ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def wait_for[T](what: str, probe: Callable[[], T | None], timeout_s: float = START_S, poll_s: float = 0.02) -> T:
    """The first truthy value of `probe`. Raises BenchError with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := probe():
            return value
        time.sleep(poll_s)
    raise BenchError(f"not within {timeout_s:g} s: {what}")


def zmq_camera(view: int, port: int, name: str) -> dict[str, Any]:
    """Configuration of one 640x480 camera at 30 fps that lerobot's ZMQCamera reads from this machine."""
    options = {"server_address": "127.0.0.1", "port": port, "camera_name": name}
    return {
        "view": f"OBS_IMAGE_{view}", "type": "zmq", "width": 640, "height": 480, "fps": 30, "options": options,
    }  # fmt: skip


class Rig:
    """The virtual station in a folder of its own, with two cameras. Close it, or its processes stay.

    `rendered` False: the cameras are pictures encoded beforehand. A camera's chip takes none of the host's time, and a
    renderer that competes with the programs under test for two cores takes most of one. `objects`: options that say
    what lies on the table, such as `--disc=red`.
    """

    def __init__(
        self, folder: Path, rendered: bool = False, cameras: int = 2, objects: Sequence[str] = (), seed: int = SEED
    ) -> None:
        self.folder = folder
        self.rendered = rendered
        self._objects, self._seed = objects, seed
        self.realtime = False  # whether the servo buses got real-time priority
        folder.mkdir(parents=True, exist_ok=True)
        values = yaml.safe_load((ROOT / "configs" / "so101" / "virtual.yaml").read_text())
        values["state_dir"] = str(folder / "state")
        values["safety"]["slow_speed_deg_s"] = ALIGN_DEG_S
        names = [*values["cameras"], "top", "side"][:cameras]
        ports = free_ports(cameras)
        values["cameras"] = {
            name: zmq_camera(number, port, name)
            for number, (name, port) in enumerate(zip(names, ports, strict=True), start=1)
        }
        self.values: dict[str, Any] = values
        self.file = folder / "station.yaml"
        self.file.write_text(yaml.safe_dump(values))
        self.config: StationConfig = load(self.file)
        self._memory = Path(
            tempfile.mkdtemp(prefix="so-bench-wire-", dir=WIRE_LOG_DIR if WIRE_LOG_DIR.is_dir() else None)
        )
        self.wire_log = self._memory / "wire.log"
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the virtual station and wait until its ports and cameras are there."""
        options = ["--seed", str(self._seed), "--wire-log", str(self.wire_log), *self._objects]
        if not self.rendered:
            options.append("--no-cameras")
        station = self._run("station", "agent.virtual", "-c", str(self.file), *options)
        self.realtime = is_realtime(station.pid)
        if not self.rendered:
            size = next(iter(self.config.cameras.values()))
            ports = [str(camera.options["port"]) for camera in self.config.cameras.values()]
            pictures = [str(size.width), str(size.height), str(size.fps), *ports]
            self._run("cameras", "benchmarks.control_bench.synthetic_cameras", *pictures)

    def _run(self, name: str, module: str, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start one program and wait until it says that it is ready."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=sink, cwd=ROOT
            )
        self._processes.append(process)
        assert process.stdout  # noqa: S101 - a pipe was asked for
        if b"ready" not in process.stdout.readline():
            raise BenchError(f"{module} did not start:\n{log.read_text()[-2000:]}")
        return process

    def configuration(self, name: str, **settings: Any) -> Path:
        """A variant of the station's file, e.g. `recording__dataset="run-1"`; returns its path."""
        values = json.loads(json.dumps(self.values))
        for path, value in settings.items():
            *parents, leaf = path.split("__")
            section = values
            for parent in parents:
                section = section[parent]
            section[leaf] = value
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    def written_ns(self, begin_ns: int, end_ns: int) -> list[int]:
        """When goals arrived on the follower's bus between the two moments, ascending."""
        with self.wire_log.open() as log:
            entries = (json.loads(line) for line in log if line.endswith("\n"))
            # One line a servo; those of one packet share its time.
            times = {entry["ns"] for entry in entries if entry["arm"] == "follower"}
        return sorted(at_ns for at_ns in times if begin_ns <= at_ns <= end_ns)

    def close(self) -> None:
        for process in self._processes:
            end(process)
        self._processes.clear()
        shutil.rmtree(self._memory, ignore_errors=True)
