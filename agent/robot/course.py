"""The course: where each drive takes the arm in the next tick, before the safety filter."""

from typing import Final

from agent.clock import NS_PER_S, Clock
from agent.config import StationConfig
from agent.messages import JOINTS, Drive, Joints, Source
from agent.robot.calibration import joints
from agent.robot.execution import Executor
from agent.robot.safety import Limits, clamp
from agent.robot.trajectory import approach, duration_s

SOFT_START_S: Final = 1.0
"""How long following takes from the slow speed to full speed, so that the last degrees are no jerk."""


class Course:
    """Continues from the last command, never from the measured pose: a servo under load lags behind its goal."""

    def __init__(self, config: StationConfig, clock: Clock, executor: Executor) -> None:
        self._safety = config.safety
        self._period_s = 1 / config.robot.control_hz
        self._clock = clock
        self._executor = executor
        self._began_ns = 0
        self.stay_at: Joints | None = None  # where HOLD goes when not simply to the last command

    def begin(self) -> None:
        """Another drive begins now."""
        self._began_ns = self._clock.now_ns()

    def next(
        self, drive: Drive, command: Joints, leader: Joints | None, limits: Limits | None
    ) -> tuple[Joints, Source]:
        """The pose after `command`, and whose wish it is. Without a leader or an action the arm stays where it is."""
        slow = self._safety.slow_speed_deg_s
        match drive:
            case Drive.ALIGN if leader:
                return approach(command, leader, slow, self._period_s), Source.ALIGN
            case Drive.FOLLOW if leader:
                since_s = (self._clock.now_ns() - self._began_ns) / NS_PER_S
                if since_s < SOFT_START_S:
                    speed = slow + (self._safety.max_speed_deg_s - slow) * since_s / SOFT_START_S
                    return approach(command, leader, speed, self._period_s), Source.LEADER
                return leader, Source.LEADER
            case Drive.PARK:
                return approach(command, self.park_pose(limits), slow, self._period_s), Source.PARK
            case Drive.EXECUTE if pose := self._executor.next(command):
                return pose, Source.POLICY
            case _:
                return self.stay_at or command, Source.HOLD

    def park_pose(self, limits: Limits | None) -> Joints:
        """The configured one, as far as this arm can go there."""
        pose = joints([getattr(self._safety.park, name) for name in JOINTS])
        return clamp(pose, limits) if limits else pose

    def parking_s(self, command: Joints, limits: Limits | None) -> float:
        """How long the way to the park pose takes from there."""
        return duration_s(command, self.park_pose(limits), self._safety.slow_speed_deg_s)
