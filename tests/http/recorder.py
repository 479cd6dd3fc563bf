"""Episodes as the recorder leaves them, and who answers in its place."""

import threading
from pathlib import Path
from typing import Any

from agent.config import StationConfig
from agent.errors import BadInput
from agent.messages import HideEpisode, MarkEpisode, Problem, RecorderCommand, RecorderReport, RecorderState
from agent.robot.recording.index import DatasetIndex
from agent.robot.recording.repair import repair
from agent.transport import CommandServer
from tests.recording.made import journal

ROWS = (12, 30, 9)


def record(config: StationConfig) -> Path:
    """A dataset with an episode of each of ROWS, committed by the recorder's own code. Takes lerobot."""
    for number, rows in enumerate(ROWS):
        journal(config.paths.journal, rows, first=100 * number, number=number, task=f"task {number}")
    assert repair(config).finished == [*range(len(ROWS))]
    return config.paths.dataset


class Recorder(threading.Thread):
    """Does to the dataset what the recorder process does, on its socket, without its imports."""

    def __init__(self, config: StationConfig) -> None:
        super().__init__(daemon=True)
        self._server: CommandServer[Any] = CommandServer(config.paths.recorder_ctl, RecorderCommand)
        self._index = DatasetIndex(config.paths.dataset)
        self._ending = threading.Event()

    def run(self) -> None:
        while not self._ending.is_set():
            if request := self._server.receive(0.02):
                envelope, command = request
                self._server.reply(envelope, self._answer(command))
        self._server.close()

    def _answer(self, command: Any) -> RecorderReport | Problem:
        try:
            match command:
                case MarkEpisode(episode=episode, success=success):
                    self._index.mark(episode, success)
                case HideEpisode(episode=episode, deleted=deleted):
                    (self._index.delete if deleted else self._index.restore)(episode)
        except BadInput as error:
            return Problem(error.code, error.message, error.hint)
        return RecorderReport(0, 0, RecorderState.READY)

    def close(self) -> None:
        self._ending.set()
        self.join()
