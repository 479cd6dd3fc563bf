"""The virtual station and the agent as processes, and a hand at the leader: what a person would use to record."""

from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from agent.cli.virtual_pair import VirtualPair
from agent.messages import JOINTS, Joints
from agent.robot.recording.index import DatasetIndex
from experiments.demo_policy.recipe import CUBES, DISCS

DRIVE_S: Final = 60.0
MOVE_S: Final = 15.0
COMMIT_S: Final = 60.0


class RecordingStation:
    """A context manager around both processes. Everything it records stays in `folder`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._seed = seed
        self._pair = VirtualPair(folder, _settings)
        self.config, self.client = self._pair.config, self._pair.client
        self.inject, self.wait = self._pair.inject, self._pair.wait

    def __enter__(self) -> Self:
        objects = [*(f"--disc={colour}" for colour in DISCS), *(f"--cube={colour}" for colour in CUBES)]
        try:
            self._pair.start_virtual(["--seed", str(self._seed), *objects])
            self._pair.start_agent()
            self.teleop()
        except BaseException:
            self._pair.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._pair.close()

    @property
    def index(self) -> DatasetIndex:
        return self._pair.index

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.inject(state=True)["state"]
        return state

    def teleop(self) -> None:
        """The follower onto the leader, which keeps still meanwhile."""
        self.inject(operator="pause")
        self.client.call("teleop.start")
        self.wait("the follower follows", lambda: self.mode() == "teleop", DRIVE_S)

    def mode(self) -> str:
        return str(self.client.call("status")["mode"])

    def follower(self) -> Joints:
        joints = self.state()["arms"]["follower"]["joints"]
        return tuple(joints[name] for name in JOINTS)  # type: ignore[return-value]

    def wait_for_hand(self) -> None:
        """Until the hand has done what it was told."""
        self.wait("the hand is there", lambda: self.state()["operator"]["doing"] == "waiting", MOVE_S)


def _settings(values: dict[str, Any]) -> None:
    values["station"] = "demo-policy"
    values["recording"]["dataset"] = "reach"
