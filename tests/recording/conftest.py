"""The real recorder process on a synthetic station. lerobot is imported once; recorders are forked."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

from agent.config import StationConfig
from agent.errors import AgentError
from agent.messages import RecorderQuery, RecorderReply, RecorderReport, RecorderState
from agent.robot.recording.process import main
from agent.telemetry import configure
from agent.transport import CommandClient
from tests.recording.forking import ended, forked

TWO_CAMERAS = {
    "wrist": {"view": "OBS_IMAGE_2", "type": "zmq", "width": 96, "height": 64},
    "front": {"view": "OBS_IMAGE_1", "type": "zmq", "width": 128, "height": 96},
}


class RecorderProcess:
    """The recorder, forked, with a client on its command socket."""

    def __init__(self, config: StationConfig) -> None:
        self.config = config
        self.pid = 0
        self._client: CommandClient[RecorderReport] = CommandClient(config.paths.recorder_ctl, RecorderReply)

    def start(self, wait_s: float = 20) -> "RecorderProcess":
        def work() -> None:
            configure(self.config.logging, "recorder")
            main(self.config)

        self.pid = forked(work)
        self.until(lambda report: report.state is not RecorderState.STARTING, wait_s)
        return self

    def ask(self, command: Any, timeout_s: float = 5) -> RecorderReport:
        return self._client.ask(command, timeout_s)

    def until(self, wanted: Callable[[RecorderReport], bool], within_s: float = 10) -> RecorderReport:
        deadline = time.monotonic() + within_s
        report = None
        while time.monotonic() < deadline:
            with contextlib.suppress(AgentError):
                report = self.ask(RecorderQuery(), timeout_s=1)
                if wanted(report):
                    return report
            time.sleep(0.01)
        raise AssertionError(f"not within {within_s} s: {report}")

    def start_episode(self, command: Any, within_s: float = 5) -> RecorderReport:
        """As soon as cameras and arm have been heard."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                return self.ask(command)
            except AgentError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def stop(self) -> int:
        os.kill(self.pid, signal.SIGTERM)
        status = ended(self.pid)
        self.pid = 0
        return status


@pytest.fixture
def config(make_config: Any) -> StationConfig:
    made: StationConfig = make_config(cameras=TWO_CAMERAS, recording={"min_free_gb": 0})
    return made


@pytest.fixture
def recorder(config: StationConfig) -> Iterator[RecorderProcess]:
    process = RecorderProcess(config)
    yield process
    process.kill()
