"""The follower arm while its bus answers: connecting, engaging, releasing and stopping it, each proved by reading back.

Made anew after every failure of the port; nothing here remembers an earlier connection.
"""

import contextlib
from collections.abc import Mapping
from typing import Final

from agent.config import StationConfig
from agent.errors import DeviceFault
from agent.messages import JOINTS, Joints
from agent.robot.bus import ServoBus
from agent.robot.calibration import COUNTS_PER_DEGREE, Match, Scale, joints
from agent.robot.port import NoReply
from agent.robot.registers import Live
from agent.robot.safety import Limits

OUTSIDE_COUNTS: Final = round(3.0 * COUNTS_PER_DEGREE)
"""A servo pulls a goal outside of its range back to the range's end at full speed. So little of that is no jump."""

MOVED_COUNTS: Final = round(2.0 * COUNTS_PER_DEGREE)
"""Goal and position further apart than this when torque comes on would be a jump; someone is moving the arm."""


class Follower:
    """A connected follower. `problem` says why it must not be moved, None when it may be.

    `torque_on` is what was last seen or verified, per joint.
    """

    def __init__(self, bus: ServoBus, config: StationConfig, live: Mapping[str, Live], problem: DeviceFault | None):
        self._bus = bus
        self.problem = problem
        self.scale = Scale(bus.calibration) if bus.calibration and problem is None else None
        self.limits = Limits.of(config.safety, self.scale) if self.scale else None
        self.torque_on = {name: live[name].torque_on for name in JOINTS}
        self.goals = {name: live[name].goal for name in JOINTS}  # as found when connecting
        self.waiting: list[str] = []  # settings that need a limp arm

    @classmethod
    def connect(cls, config: StationConfig, release: bool) -> "Follower":
        """Open the port and look at the arm, changing nothing about its torque or goals.

        With `release`, every servo that answers loses its torque even if others are missing: a person asked for it.
        Raises BadInput, DeviceFault.
        """
        bus = ServoBus(config, "follower")
        try:
            bus.open()
            if release:
                bus.release()
            servos = bus.settings()
            live = bus.live()
            report = bus.compare_calibration(servos)
            problem = None
            if report.match is not Match.SAME:
                problem = DeviceFault(report.problem, report.hint)
            follower = cls(bus, config, live, problem)
            if problem is None:
                limp = not any(follower.torque_on.values())
                follower.waiting = bus.configure(servos, limp)
        except BaseException:
            bus.close()
            raise
        return follower

    def close(self) -> None:
        """Let go of the port. Torque stays as it is."""
        self._bus.close()

    @property
    def status_bits(self) -> dict[str, int]:
        return self._bus.status_bits

    @property
    def engaged(self) -> bool:
        """Torque on anywhere."""
        return any(self.torque_on.values())

    @property
    def lost(self) -> list[str]:
        """Joints without torque on an arm that has torque elsewhere: their servos rebooted."""
        return [name for name, on in self.torque_on.items() if not on] if self.engaged else []

    def read(self) -> Joints | None:
        """Measured joints; None without a valid calibration, because then counts mean nothing. Raises NoReply."""
        counts = self._bus.positions()
        return self.scale.to_units(counts) if self.scale else None

    def live_of(self, name: str) -> Live:
        return self._bus.live_of(name, tries=1)

    def send(self, values: Joints) -> Joints:
        """Write goals; returns exactly what the goal registers stand for, after rounding to counts.

        Servos without torque get none: one that rebooted must not be woken by a goal.
        """
        assert self.scale is not None  # noqa: S101 - nothing is sent while there is a problem
        counts = self.scale.to_counts(values)
        self._bus.write_goals({name: value for name, value in counts.items() if self.torque_on[name]})
        return self.scale.to_units(counts)

    def engage(self, command: Joints | None) -> Joints | None:
        """Torque on, servo by servo, each with its goal set to where it is and read back first.

        Returns the pose to go on from: servos that kept their torque go on from `command`, the last one, the others
        from where they are. Raises DeviceFault; whatever was switched on by then is off again.
        """
        if self.problem:
            raise self.problem
        before = tuple(self.torque_on.values())
        self._switch_on()
        self.refresh()
        here = self.command()
        if here and command and any(before):
            here = joints([c if on else h for c, h, on in zip(command, here, before, strict=True)])
        return here

    def _switch_on(self) -> None:
        switched: list[str] = []
        try:
            for name in JOINTS:
                if not self.torque_on[name]:
                    switched.append(name)
                    self._engage(name)
        except DeviceFault:
            failed = self._bus.release(switched)
            self.torque_on |= {name: name in failed for name in switched}
            raise

    def _engage(self, name: str) -> None:
        assert self._bus.calibration is not None  # noqa: S101 - no problem, so there is one
        joint = self._bus.calibration[name]
        here = self._bus.live_of(name).position
        outside = max(joint.range_min - here, here - joint.range_max)
        if outside > OUTSIDE_COUNTS:
            degrees = outside / COUNTS_PER_DEGREE
            raise DeviceFault(
                f"{name} is {degrees:.0f} degrees outside of its calibrated range.", "Move it back by hand, then retry."
            )
        self._bus.set_goal(name, here)
        if abs(self._bus.live_of(name).position - here) > MOVED_COUNTS:
            raise DeviceFault(f"{name} is being moved.", "Let the arm rest, then retry.")
        self._bus.set_torque(name, on=True)
        self.torque_on[name] = True

    def release(self) -> list[str]:
        """Torque off everywhere, verified. Returns the joints that are not proved to be released."""
        failed = self._bus.release()
        self.torque_on = {name: name in failed for name in JOINTS}
        return failed

    def stop(self) -> list[str]:
        """E-stop, holding: every goal becomes the present position, torque stays. Returns the servos unproved."""
        live = self._live()
        self.torque_on |= {name: servo.torque_on for name, servo in live.items()}
        here = {name: servo.position for name, servo in live.items() if servo.torque_on}
        if here:
            self._bus.write_goals(here)
        self.goals |= here
        after = self._live()
        stopped = {name for name, servo in after.items() if not servo.torque_on or servo.goal == here.get(name)}
        return [name for name in JOINTS if name not in stopped]

    def _live(self) -> dict[str, Live]:
        """Every servo that answers: all at once, or one by one when some are missing.

        No retries: an e-stop must not wait for a servo that is gone. What stays unproved is stopped again.
        """
        try:
            return self._bus.live(tries=1)
        except NoReply:
            found = {}
            for name in JOINTS:
                with contextlib.suppress(NoReply):
                    found[name] = self._bus.live_of(name, tries=1)
            return found

    def refresh(self) -> None:
        """Take over goals and torque as the servos have them now. Raises NoReply."""
        live = self._bus.live()
        self.goals = {name: live[name].goal for name in JOINTS}
        self.torque_on = {name: live[name].torque_on for name in JOINTS}

    def command(self) -> Joints | None:
        """The pose that the goal registers stand for; None without a valid calibration."""
        return self.scale.to_units(self.goals) if self.scale else None
