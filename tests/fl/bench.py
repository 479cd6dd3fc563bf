"""A fleet on loopback: the real SuperLink and gate, and stations whose federation is real from the desk down.

Only the desk is ours: it says whether an arm is wanted, as a station would. tests/fl/station/test_live.py has a whole
station.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.clock import SystemClock
from agent.config import StationConfig
from agent.fl import fleet_runs
from agent.fl.federation import Federation
from agent.fl.fleet import Fleet, Serving
from agent.fl.fleet_control import Control
from agent.fl.fleet_report import rounds
from agent.fl.node import NodeState

ROOT = Path(__file__).resolve().parents[2]

START_S = 240.0
"""Seconds on a quiet machine. On a very busy one the imports of a SuperLink or a SuperNode alone take a minute."""

TINY: dict[str, Any] = {
    "policy": "tiny",
    "num-server-rounds": 3,
    "local-steps": 4,
    "batch-size": 2,
    "adapter-rank": 4,
    "node-timeout-s": 120.0,
    "round-timeout-s": 150.0,
}
"""A run that takes as little time as Flower lets it."""


def packed(folder: Path | None) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Flower's use of pathspec, once a file
        return fleet_runs.packed(folder)


PATIENT: bytes = packed(ROOT / "tests" / "fl" / "apps" / "patient")
PATIENT_HASH = hashlib.sha256(PATIENT).hexdigest()


def notes(output: Path) -> list[dict[str, Any]]:
    """What the patient app's server wrote: one object a round."""
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


async def until[T](what: str, probe: Callable[[], T | None], timeout_s: float = START_S) -> T:
    """The first truthy value of `probe`. Fails with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := probe():
            return value
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


class Desk:
    """What a station says to its federation, and hears from it."""

    def __init__(self) -> None:
        self.busy: str | None = None
        self.hot_c: float | None = 30.0
        self.trained: list[str | None] = []
        self.told: list[str] = []

    def wanted(self) -> str | None:
        return self.busy

    def hottest_c(self) -> float | None:
        return self.hot_c

    def training(self, cause: str | None) -> None:
        self.trained.append(cause)

    def tell(self, text: str, data: dict[str, Any]) -> None:
        self.told.append(text)


EAGER: dict[str, Any] = {"idle_min": 0.0, "min_free_memory_gb": 0.2, "min_free_disk_gb": 0.2, "threads": 1}
"""Nothing to wait for before a station joins."""


def station_config(folder: Path, name: str, **federation: Any) -> StationConfig:
    return StationConfig(
        station=name,
        state_dir=folder / name,
        robot={
            "model": "so101",
            "follower": {"port": "/dev/null", "id": "follower"},
            "calibration_dir": folder / "calibration",
        },
        federation=EAGER | federation,
    )  # type: ignore[arg-type]


class Member:
    """One station's federation, running in the test's own loop; its processes are real."""

    def __init__(self, folder: Path, name: str, **federation: Any) -> None:
        self.name = name
        self.config = station_config(folder, name, **federation)
        self.desk = Desk()
        self.federation = Federation(self.config, SystemClock(), self.desk)
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> NodeState:
        return self.federation.node.state

    @property
    def reason(self) -> str:
        return str(self.federation.report()["reason"])

    def equip(self, policy: Path, dataset: Path) -> None:
        """Give it the base policy and a dataset of its own, with consent."""
        shutil.copytree(policy, self.config.paths.policies / policy.name, dirs_exist_ok=True)
        shutil.copytree(dataset, self.config.paths.dataset, dirs_exist_ok=True)
        self.federation.membership.give_consent(self.config.recording.dataset, True)

    def enroll(self, server: "Server", authority: Path | None = None, address: str | None = None) -> str:
        """Its public key."""
        pem = (authority or server.fleet.authority).read_text()
        self.federation.membership.enroll(address or server.address, pem, None)
        return self.federation.membership.public_line()

    def start(self) -> None:
        self._task = asyncio.create_task(self.federation.run(), name=f"station {self.name}")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def until(self, *states: NodeState, timeout_s: float = START_S) -> None:
        try:
            await until(f"{self.name} {states}", lambda: self.state in states, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.federation.report()}\n{self.log()}") from None

    def log(self) -> str:
        path = self.federation.node.folders.log
        return path.read_text()[-4000:] if path.is_file() else ""  # a test may have put a device in its place


class Server:
    """`so-agent fleet serve`, as a process of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.fleet = Fleet.init(folder / "fleet", "test", ())
        self.address = f"127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "serve.log"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent.cli", "fleet", "serve", "--fleet", str(self.fleet.folder),
             "--bind", self.address],
            stdin=subprocess.DEVNULL, stdout=self.log.open("ab"), stderr=subprocess.STDOUT, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip

    async def ready(self) -> Serving:
        def serving() -> Serving | None:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(Exception):
                return self.fleet.serving()
            return None

        try:
            return await until("the fleet is served", serving)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()}\n{self.superlink_log()}") from None

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def superlink_log(self) -> str:
        path = self.fleet.folder / "superlink.log"
        return path.read_text()[-4000:] if path.exists() else ""

    def pid_of(self, what: str) -> int:
        """Of the last `superlink` or `gate` that was started."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return int([each["pid"] for each in lines if each["event"] == "started" and each["what"] == what][-1])

    async def begin(self, name: str, **overrides: Any) -> None:
        """A run, with `TINY` and what is given; underscores stand for hyphens."""
        values = TINY | {key.replace("_", "-"): value for key, value in overrides.items()}
        await asyncio.to_thread(self._submit, name, packed(None), values)

    async def be_patient(self, name: str, **overrides: Any) -> Path:
        """A run of the app in tests/fl/apps; the file in which its server writes a line a round."""
        output = self.fleet.folder / f"{name}.jsonl"
        values = {"output": str(output)} | {key.replace("_", "-"): value for key, value in overrides.items()}

        def start() -> None:
            control = Control(self.fleet)
            try:
                control.start(PATIENT, values)
            finally:
                control.close()

        await asyncio.to_thread(start)
        return output

    def _submit(self, name: str, app: bytes, values: dict[str, Any]) -> None:
        control = Control(self.fleet)
        try:
            fleet_runs.submit(self.fleet, control, name, app, values)
        finally:
            control.close()

    async def over(self, name: str, timeout_s: float) -> str:
        """How a run ended: completed, failed or stopped."""

        def over() -> str | None:
            return next(each.over for each in fleet_runs.requests(self.fleet) if each.name == name) or None

        try:
            return await until(f"the run {name} is over", over, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.rounds(name)}\n{self.superlink_log()}") from None

    def rounds(self, name: str) -> list[dict[str, Any]]:
        return rounds(self.fleet.runs / name)
