"""The whole thing in two minutes: virtual station, agent, teleoperation, two episodes, pictures of them."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent.cli import demo_task
from agent.cli.record import progress_line
from agent.cli.virtual_pair import VirtualPair
from agent.errors import AgentError, DeviceFault
from agent.robot.recording.index import DatasetIndex

TASK: Final = "touch the blue disc"
RESET_S: Final = 2.0

DRIVE_S: Final = 60.0
"""Aligning and parking take at most 8 s at 30 degrees a second; a busy machine has time to spare."""

COMMIT_S: Final = 60.0
PICTURES_S: Final = 120.0


class Demo:
    """What is shown, step by step; leaving the context ends both processes, whatever happened."""

    def __init__(self, folder: Path, model: str, quiet: bool) -> None:
        self._model = model
        self._console = Console(stderr=True, quiet=quiet)
        self._pair = VirtualPair(folder, _settings(model, folder.absolute() / model), model)
        self.folder, self.file, self.config = self._pair.folder, self._pair.file, self._pair.config
        self.client = self._pair.client
        self._before = 0
        self._timing: dict[str, Any] = {}
        self._tasks: list[demo_task.Done] = []
        self.pictures: list[Path] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._pair.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._pair.close()

    def _start(self) -> None:
        self._before = self.index.count()
        with self._step("Starting the virtual arm, its cameras and the operator"):
            self._pair.start_virtual(demo_task.OBJECTS)
        with self._step("Starting the agent (the first start loads torch: some seconds)"):
            self._pair.start_agent()

    @property
    def index(self) -> DatasetIndex:
        return self._pair.index

    def record(self, episodes: int, episode_s: float) -> None:
        """Teleoperate and record. Raises what the agent reports, or DeviceFault when less came out than was asked."""
        with self._step("Moving the follower onto the leader"):
            self.client.call("teleop.start")
            self._wait_mode("teleop")
            self._pair.inject(operator={"task": "touch", "disc": "blue disc"})
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
            self._tasks = demo_task.carry_out(self.config, self.client, self._pair.wait)

    def finish(self) -> None:
        """Park, stop both programs, draw the pictures."""
        with self._step("Parking the arm"):
            self.client.call("park")
            self._wait_mode("idle")
        with self._step("Stopping"):
            self._pair.close()
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

    def _wait_mode(self, mode: str) -> None:
        def there() -> bool:
            status = self.client.call("status")
            if status["mode"] in ("fault", "estop"):
                raise DeviceFault(f"The station is in mode {status['mode']}: {status['reason']}.")
            return bool(status["mode"] == mode)

        self._pair.wait(f"the station is in mode {mode}", there, DRIVE_S)

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


def _settings(model: str, state: Path) -> Callable[[dict[str, Any]], None]:
    def settings(values: dict[str, Any]) -> None:
        values["station"] = f"demo-{model}"
        values["state_dir"] = str(state)
        values["recording"]["dataset"] = "demo"
        # A slow machine draws too few frames. Rather than refuse the episode, say in the table how many were repeated.
        values["recording"]["max_repeat_pct"] = 100

    return settings
