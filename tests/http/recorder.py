"""Episodes as the recorder leaves them, and who answers in its place."""

from pathlib import Path
from typing import Any

from agent.config import StationConfig
from agent.errors import BadInput
from agent.messages import HideEpisode, MarkEpisode, Problem, RecorderCommand, RecorderReport, RecorderState
from agent.robot.recording.index import DatasetIndex
from agent.robot.recording.repair import repair
from tests.recording.made import journal
from tests.stand_in import StandIn

ROWS = (12, 30, 9)


def record(config: StationConfig) -> Path:
    """A dataset with an episode of each of ROWS, committed by the recorder's own code. Takes lerobot."""
    for number, rows in enumerate(ROWS):
        journal(config.paths.journal, rows, first=100 * number, number=number, task=f"task {number}")
    assert repair(config).finished == [*range(len(ROWS))]
    return config.paths.dataset


class Recorder(StandIn):
    """Does to the dataset what the recorder process does."""

    def __init__(self, config: StationConfig) -> None:
        super().__init__(config.paths.recorder_ctl, RecorderCommand)
        self._index = DatasetIndex(config.paths.dataset)

    def answer(self, command: Any) -> RecorderReport | Problem:
        try:
            match command:
                case MarkEpisode(episode=episode, success=success):
                    self._index.mark(episode, success)
                case HideEpisode(episode=episode, deleted=deleted):
                    (self._index.delete if deleted else self._index.restore)(episode)
        except BadInput as error:
            return Problem(error.code, error.message, error.hint)
        return RecorderReport(0, 0, RecorderState.READY)
