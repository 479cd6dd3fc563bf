"""The whole thing in two minutes: virtual station, agent, teleoperation, two episodes, pictures of them."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent.api.local import Client
from agent.cli import demo_task
from agent.cli.record import progress_line
from agent.config import StationConfig, load
from agent.errors import AgentError, DeviceFault, NotRunning
from agent.robot.recording.index import DatasetIndex
from agent.virtual.client import inject

CONFIGS: Final = Path(__file__).resolve().parents[2] / "configs"

TASK: Final = "touch the blue disc"
RESET_S: Final = 2.0
POLL_S: Final = 0.2

VIRTUAL_S: Final = 90.0
"""Compiling the scene and opening EGL takes 2 s on a desktop and 20 s on a small board."""

READY_S: Final = 180.0
"""A first start reads 500 MB of libraries from a cold disk."""

DRIVE_S: Final = 60.0
"""Aligning and parking take at most 8 s at 30 degrees a second; a busy machine has time to spare."""

COMMIT_S: Final = 60.0
STOP_S: Final = 45.0
PICTURES_S: Final = 120.0
LOG_TAIL_CHARS: Final = 1500


class Demo:
    """Owns the two processes; leaving the context ends them, whatever happened."""

    def __init__(self, folder: Path, model: str, quiet: bool) -> None:
        self.folder = folder.absolute()
        self._model = model
        self._console = Console(stderr=True, quiet=quiet)
        self._run_dir = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))
        self._virtual: subprocess.Popen[bytes] | None = None
        self._agent: subprocess.Popen[bytes] | None = None
        self._before = 0
        self._timing: dict[str, Any] = {}
        self._tasks: list[demo_task.Done] = []
        self.pictures: list[Path] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "station.yaml"
        self.file.write_text(yaml.safe_dump(_settings(self._model, self.folder, self._run_dir), sort_keys=False))
        self.config: StationConfig = load(self.file)
        self.client = Client(self.config.paths.agent_socket)
        self._before = self.index.count()
        with self._step("Starting the virtual arm, its cameras and the operator"):
            self._virtual = self._launch("virtual", "agent.virtual", "-c", str(self.file), *demo_task.OBJECTS)
            self._wait(lambda: self._says_ready(), "the virtual station is ready", VIRTUAL_S)
            # The hand keeps still while the follower moves onto the leader's pose.
            inject(self.config, {"operator": "pause"})
        with self._step("Starting the agent (the first start loads torch: some seconds)"):
            self._agent = self._launch("agent", "agent.cli", "run", "-c", str(self.file))
            self._wait(self._is_ready, "the agent is ready", READY_S)

    @property
    def index(self) -> DatasetIndex:
        return DatasetIndex(self.config.paths.dataset)

    def record(self, episodes: int, episode_s: float) -> None:
        """Teleoperate and record. Raises what the agent reports, or DeviceFault when less came out than was asked."""
        with self._step("Moving the follower onto the leader"):
            self.client.call("teleop.start")
            self._wait_mode("teleop")
            inject(self.config, {"operator": {"task": "touch", "disc": "blue disc"}})
        with self._console.status("Recording") as status:

            def show(event: dict[str, Any]) -> None:
                status.update(progress_line(event))
                with contextlib.suppress(AgentError):
                    self._timing = (self.client.call("status")["arm"] or {}).get("loop") or self._timing

            plan = {"task": TASK, "episodes": episodes, "episode_s": episode_s, "reset_s": RESET_S, "wait": True}
            summary = self.client.call("record.start", plan, COMMIT_S, show)
        committed = [result for result in summary["results"] if result["outcome"] == "committed"]
        if summary["problem"] or len(committed) < episodes:
            reasons = [summary["problem"], *(result["reason"] for result in summary["results"])]
            said = " ".join(reason for reason in reasons if reason) or "no reason given"
            raise DeviceFault(
                f"{len(committed)} of {episodes} episodes were recorded: {said}",
                f"See the logs in {self.folder / 'logs'}.",
            )
        self._done(f"Recording {episodes} episodes")

    def by_itself(self) -> None:
        """Let the shipped policy have the arm. The recorded episodes of it are judged: touched or not."""
        self.client.call("teleop.stop")
        if self._model != demo_task.MODEL or not demo_task.POLICY.is_dir():
            return  # the policy has never seen this arm, or was not shipped
        with self._step("Letting the arm touch discs by itself; a person takes over once"):
            self._tasks = demo_task.carry_out(self.config, self.client, self._wait)

    def finish(self) -> None:
        """Park, stop both programs, draw the pictures."""
        with self._step("Parking the arm"):
            self.client.call("park")
            self._wait_mode("idle")
        with self._step("Stopping"):
            self._close()
        with self._step("Drawing"):
            self.pictures = self._draw()

    # --- outcome ---

    def outcome(self) -> dict[str, Any]:
        """What `so-agent demo --json` prints."""
        return {
            "dataset": str(self.config.paths.dataset),
            "episodes": self._episodes(),
            "tasks": demo_task.plain(self._tasks),
            "period_error_p99_ms": self._timing.get("period_error_p99_ms"),
            "scheduling": self._timing.get("scheduling"),
            "pictures": [str(path) for path in self.pictures],
        }

    def _episodes(self) -> list[dict[str, Any]]:
        return [self.index.show(number) for number in range(self._before, self.index.count())]

    def print_outcome(self) -> None:
        console = Console()
        table = Table(title="Recorded", title_justify="left")
        for name in ("episode", "task", "source", "frames", "rate", "dropped ticks", "repeated frames"):
            table.add_column(name, justify="left" if name in ("task", "source") else "right")
        for about in self._episodes():
            table.add_row(
                str(about["episode"]),
                str(about["task"]),
                str(about["source"]),
                str(about["frames"]),
                f"{about['rate_hz']:.3f}",
                str(sum(gap["missing"] for gap in about["gaps"])),
                ", ".join(f"{name} {camera['repeats']}" for name, camera in about["cameras"].items()),
            )
        console.print(table)
        if self._tasks:
            console.print(demo_task.render(self._tasks))
        if self._timing:
            console.print(
                f"Period error of the control loop: p50 {self._timing['period_error_p50_ms']:.2f} ms, "
                f"p99 {self._timing['period_error_p99_ms']:.2f} ms ({self._timing['scheduling']})",
                highlight=False,
            )
        paths = Table.grid(padding=(0, 2))
        paths.add_row("dataset", str(self.config.paths.dataset))
        for path in self.pictures:
            paths.add_row("picture", str(path))
        paths.add_row("logs", str(self.folder / "logs"))
        console.print(paths)

    def _draw(self) -> list[Path]:
        """In a process of its own: decoding video and plotting need libraries that the command line does without."""
        pictures = self.folder / "pictures"
        pictures.mkdir(exist_ok=True)
        for number in range(self._before, self.index.count()):
            command = [sys.executable, "-m", "agent.robot.recording.pictures", str(self.config.paths.dataset)]
            try:
                subprocess.run(
                    [*command, str(number), str(pictures)],
                    capture_output=True, text=True, timeout=PICTURES_S, check=True,
                )  # fmt: skip
            except subprocess.CalledProcessError as error:
                # The episodes are safe; pictures of them are not worth failing for.
                self._console.print(Text(f"No pictures of episode {number}: {error.stderr[-300:]}", "yellow"))
        return sorted(pictures.glob("*.png"))

    # --- processes ---

    def _launch(self, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log(name).open("wb") as log:
            # A session of its own: Ctrl-C comes here, and the arm is parked before anything ends.
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments], stdout=log, stderr=log, start_new_session=True
            )

    def _log(self, name: str) -> Path:
        path = self.folder / "logs" / f"{name}.log"
        path.parent.mkdir(exist_ok=True)
        return path

    def _says_ready(self) -> bool:
        return "ready" in self._log("virtual").read_text(errors="replace")

    def _is_ready(self) -> bool:
        with contextlib.suppress(NotRunning):
            status = self.client.call("status", timeout_s=2.0)
            return (
                status["mode"] in ("idle", "hold")
                and (status["recorder"] or {}).get("state") == "ready"
                and all(camera["state"] == "streaming" for camera in status["cameras"].values())
            )
        return False

    def _wait_mode(self, mode: str) -> None:
        def there() -> bool:
            status = self.client.call("status")
            if status["mode"] in ("fault", "estop"):
                raise DeviceFault(f"The station is in mode {status['mode']}: {status['reason']}.")
            return bool(status["mode"] == mode)

        self._wait(there, f"the station is in mode {mode}", DRIVE_S)

    def _wait(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            for name, process in (("virtual", self._virtual), ("agent", self._agent)):
                if process and process.poll() is not None:
                    raise DeviceFault(f"The {name} process ended early.", self._end_of_log(name))
            if time.monotonic() > deadline:
                raise DeviceFault(f"Not within {timeout_s:g} s: {what}.", self._end_of_log("agent"))
            time.sleep(POLL_S)

    def _end_of_log(self, name: str) -> str:
        log = self._log(name)
        tail = log.read_text(errors="replace")[-LOG_TAIL_CHARS:] if log.exists() else ""
        return f"The end of {log}:\n{tail}"

    def _close(self) -> None:
        """The agent first: it parks the arm and commits, for which it needs the station."""
        for process in (self._agent, self._virtual):
            if process is None or process.poll() is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._run_dir, ignore_errors=True)

    # --- words ---

    @contextlib.contextmanager
    def _step(self, words: str) -> Iterator[None]:
        began = time.monotonic()
        with self._console.status(f"{words} …"):
            yield
        self._done(words, time.monotonic() - began)

    def _done(self, words: str, took_s: float | None = None) -> None:
        line = Text.assemble(("✓ ", "green"), words)
        self._console.print(line if took_s is None else line.append(f"  {took_s:.1f} s", "dim"))


def _settings(model: str, folder: Path, run_dir: Path) -> Mapping[str, Any]:
    """The shipped virtual configuration, in a folder of its own and on free ports."""
    values: dict[str, Any] = yaml.safe_load((CONFIGS / model / "virtual.yaml").read_text())
    values["station"] = f"demo-{model}"
    values["state_dir"] = str(folder / model)
    values["run_dir"] = str(run_dir)
    values["recording"]["dataset"] = "demo"
    # A slow machine draws too few frames. Rather than refuse the episode, say in the table how many were repeated.
    values["recording"]["max_repeat_pct"] = 100
    for arm in ("follower", "leader"):
        values["robot"][arm]["port"] = str(run_dir / arm)
    with contextlib.ExitStack() as stack:  # all at once, so that no two cameras get the same port
        for camera in values["cameras"].values():
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            camera["options"]["port"] = probe.getsockname()[1]
    return values
