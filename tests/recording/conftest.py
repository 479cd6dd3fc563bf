"""The real recorder process on a synthetic station."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.config import StationConfig
from agent.errors import AgentError
from agent.messages import RecorderQuery, RecorderReply, RecorderReport, RecorderState
from agent.transport import CommandClient
from tests.nursery import RECORDER, Child, Nursery

TWO_CAMERAS = {
    "wrist": {"view": "OBS_IMAGE_2", "type": "zmq", "width": 96, "height": 64},
    "front": {"view": "OBS_IMAGE_1", "type": "zmq", "width": 128, "height": 96},
}


class RecorderProcess:
    """The recorder, with a client on its command socket."""

    def __init__(self, nursery: Nursery, config: StationConfig) -> None:
        self.config = config
        self._nursery = nursery
        self._child: Child | None = None
        self._client: CommandClient[RecorderReport] = CommandClient(config.paths.recorder_ctl, RecorderReply)

    @property
    def pid(self) -> int:
        assert self._child
        return self._child.pid

    def start(self, wait_s: float = 20) -> "RecorderProcess":
        self._child = self.another()
        self.until(lambda report: report.state is not RecorderState.STARTING, wait_s)
        return self

    def another(self) -> Child:
        """A process of the same configuration, about which nothing is assumed."""
        return self._nursery.spawn("recorder", f"{RECORDER}:main", self.config)

    def printed(self) -> str:
        """What every recorder so far has logged."""
        return self._nursery.log.read_text()

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
        if self._child:
            self._child.kill()

    def stop(self) -> int:
        assert self._child
        self._child.terminate()
        return self._child.ended()


@pytest.fixture
def config(make_config: Any) -> StationConfig:
    made: StationConfig = make_config(cameras=TWO_CAMERAS, recording={"min_free_gb": 0})
    return made


@pytest.fixture
def recorder(nursery: Nursery, config: StationConfig) -> Iterator[RecorderProcess]:
    process = RecorderProcess(nursery, config)
    yield process
    process.kill()
