"""What the arm does: the drives, and what changes them. Where each of them goes is the `Course`.

Rules that hold in every drive:
* Never a jump. Torque comes on with the goal at the present position; holding continues from the last command; an
  arm that is found with torque on is adopted with the goals it has.
* Nothing starts to move by itself: after a fault, a lost cable or a lost leader, the arm waits for a command.
* Degrade in this order: follow, hold, park slowly, torque off. Heat parks, and so does an agent that stays away. A
  stall or an overload holds at the present pose, and releases if it lasts; an overloaded gripper is only relieved,
  because a firm grip looks the same.
* An e-stop is latched, proved by reading back, and repeated until it is proved.
"""

from typing import Final

from agent.clock import Clock, nanoseconds
from agent.config import StationConfig
from agent.errors import DeviceFault, EstopLatched, Refused, Safety
from agent.messages import Drive, Joints, Limit, Source
from agent.robot import estop
from agent.robot.connection import Connection
from agent.robot.course import Course
from agent.robot.execution import Executor
from agent.robot.follower import Follower
from agent.robot.health import Health
from agent.robot.leader import Leader
from agent.robot.port import NoReply, PortLost
from agent.robot.reflexes import MOVING, Reflexes
from agent.robot.safety import clamp, filter_action
from agent.robot.trajectory import distance
from agent.telemetry import logger

SUPERVISOR_LOST_S: Final = 3.0
"""Six heartbeats at two a second."""

ALIGNED: Final = 3.0
"""Following begins when every joint is this close to the leader. Degrees or percent."""

SETTLED: Final = 3.0
"""A parked arm has arrived when it is measured this close to where it was sent. Degrees or percent."""

SETTLE_S: Final = 1.0
"""... or this long after it should have: it may lie on the table by then."""

RELEASE_S: Final = 2.0
"""How long a leaving process goes on trying to release servos that do not answer."""

TORQUED: Final = MOVING | {Drive.HOLD}


class Pilot:
    """The arm's drive and everything that depends on it. Used by the control thread only."""

    def __init__(self, config: StationConfig, clock: Clock, leader: Leader, executor: Executor) -> None:
        self._config = config
        self._clock = clock
        self._leader = leader
        self._executor = executor
        self.health = Health(config.safety)
        self.bus = Connection(config, clock, self.health, self._on_lost)
        self._latch = estop.read(config.paths.estop_latch)
        self.estop_verified: bool | None = None if self._latch is None else False
        self.drive = Drive.ESTOP if self._latch else Drive.OFFLINE
        self.reason = self._latch.reason if self._latch else "connecting"
        self.measured: Joints | None = None  # of this tick
        self.command: Joints | None = None  # the last pose that was sent, before rounding to counts
        self._course = Course(config, clock, executor)
        self._sent_ns = 0
        self._arrived_ns: int | None = None
        self._reflexes = Reflexes()
        self._release_wanted = False
        self._leaving: str | None = None  # why
        self._forsaken = False  # leaving only because the supervisor is gone: off when it is back
        self._leave_by_ns = 0
        self._leave_attempts = 0  # to connect, made before leaving began
        self.alone = False  # the supervisor is gone
        self.busy = False  # something was done that may take longer than a period
        self.done = False  # the process may exit

    # --- one tick ---

    def connect(self) -> None:
        """Try to get the arm, if it is not here; take it as it is when it comes."""
        if self.bus.follower:
            return
        self.busy = True
        limp_stop = self._latch is not None and self._config.safety.estop == "limp"
        follower = self.bus.try_to_connect(release=self._release_wanted or limp_stop)
        if follower is None:
            if self.drive is Drive.OFFLINE:
                self.reason = self.bus.reason
            return
        self._release_wanted = False
        if self._latch:
            self._stop()
        else:
            self._adopt(follower, "connected")

    def read(self) -> Joints | None:
        self.measured = self.bus.read()
        return self.measured

    def judge(self, heard_ns: int) -> None:
        """Whether the arm must do something else than it does. `heard_ns`: when the supervisor was last heard."""
        now = self._clock.now_ns()
        self._mind_the_supervisor(now, heard_ns)
        follower = self.bus.follower
        if follower is None:
            return
        if self.drive is Drive.ESTOP:
            if self._release_wanted:
                self._release(self.reason)
            elif not self.estop_verified or (self._config.safety.estop == "limp" and follower.engaged):
                self._stop()
        elif self.drive is Drive.LIMP:
            if self._release_wanted or follower.engaged:
                self._release(self.reason)
        elif not follower.engaged:
            self.command = None
            self._enter(Drive.LIMP, "all servos lost their torque; was the power interrupted?")
        else:
            self._mind_health(follower, now)
            self._mind_readings(now)
            self._mind_arrival(now)

    def choose(self) -> tuple[Joints | None, Source]:
        """The action that the present drive wants, before the safety filter."""
        if self.command is None or self.drive not in TORQUED:
            return None, Source.NONE
        return self._course.next(self.drive, self.command, self._leader.joints, self.bus.limits)

    def send(self, requested: Joints | None) -> tuple[Joints | None, tuple[Limit, ...]]:
        """Filter and write. Returns what the goal registers stand for now, None when nothing was written."""
        follower = self.bus.follower
        if requested is None or self.command is None or follower is None or follower.limits is None:
            return None, ()
        now = self._clock.now_ns()
        period_s = 1 / self._config.robot.control_hz
        # After a pause the arm may not make up for the time lost.
        dt_s = min(max((now - self._sent_ns) / 1e9, period_s / 2), period_s * 2)
        relieved, relief = self.health.relieve(requested, self.measured)
        try:
            allowed, limits = filter_action(relieved, self.command, follower.limits, dt_s)
        except Safety as error:
            self._hold(error.message)
            return None, ()
        with self.bus.guarded():
            try:
                sent = follower.send(allowed)
            except NoReply:
                return None, ()
            self.command, self._sent_ns = allowed, now
            return sent, relief + limits
        return None, ()

    # --- what forces another drive ---

    def _mind_the_supervisor(self, now: int, heard_ns: int) -> None:
        silent_ns = now - heard_ns
        was_alone, self.alone = self.alone, silent_ns > nanoseconds(SUPERVISOR_LOST_S)
        if self.alone and self.drive in MOVING - {Drive.PARK}:
            self._hold("the agent is gone; holding")
        if was_alone and not self.alone and self._forsaken:
            self._leaving, self._forsaken = None, False
            if self.drive is Drive.PARK:
                self._hold("the agent is back")
        park_after_s = self._config.safety.hold_park_after_s
        forsaken = self.alone and park_after_s is not None and silent_ns > nanoseconds(park_after_s)
        if forsaken and not self._leaving and self.drive is not Drive.ESTOP:
            self.leave("the agent did not come back")
            self._forsaken = True
        if self._leaving:
            self._mind_leaving(now)

    def _mind_leaving(self, now: int) -> None:
        if self.drive is Drive.ESTOP:
            self.done = True  # left as it is: latched, and not to be moved
        elif self.drive is Drive.OFFLINE:
            self._release_wanted = True  # one more attempt: perhaps some of the servos can be reached
            self.done = self.bus.attempts > self._leave_attempts
        elif self.drive is Drive.LIMP:
            self.done = not self._release_wanted or now > self._leave_by_ns + nanoseconds(RELEASE_S)
        elif self.drive is not Drive.PARK or now > self._leave_by_ns:
            self._release(f"{self._leaving}; released without reaching the park pose")

    def _mind_health(self, follower: Follower, now: int) -> None:
        reflex = self._reflexes.judge(
            self.health.verdict(),
            follower.lost,
            self.drive,
            now,
            commanded=self.command is not None,
            measured=self.measured is not None,
        )
        if reflex is None:
            return
        if reflex.drive is Drive.LIMP:
            self._release(reflex.reason)
            return
        self._enter(reflex.drive, reflex.reason)
        if reflex.here and self.measured and self.command:
            self._course.stay_at = self.measured

    def _mind_readings(self, now: int) -> None:
        if self.drive not in MOVING:
            return
        stale_ms = self._config.safety.stale_action_ms
        if now - self.bus.measured_ns > stale_ms * 1e6:
            self._hold(f"the joints could not be read for {stale_ms:.0f} ms; start again when they can")
        elif self.drive in (Drive.ALIGN, Drive.FOLLOW) and not self._leader.fresh(now):
            why = f" ({self._leader.reason})" if self._leader.reason else ""
            self._hold(f"no leader reading for {stale_ms:.0f} ms{why}; start teleop again to align")
        elif self.drive is Drive.EXECUTE and (starved := self._executor.overdue()):
            self._hold(starved)

    def _mind_arrival(self, now: int) -> None:
        command, follower, leader = self.command, self.bus.follower, self._leader.joints
        if command is None or follower is None or follower.limits is None:
            return
        if self.drive is Drive.ALIGN and leader and distance(command, clamp(leader, follower.limits)) <= ALIGNED:
            self._enter(Drive.FOLLOW, "following the leader")
        if self.drive is not Drive.PARK or distance(command, self._course.park_pose(self.bus.limits)) > 1e-6:
            self._arrived_ns = None
            return
        self._arrived_ns = self._arrived_ns or now
        settled = self.measured is not None and distance(self.measured, command) <= SETTLED
        if settled or now - self._arrived_ns > nanoseconds(SETTLE_S):
            self._release(f"parked: {self.reason}")

    # --- changes of drive ---

    def change(self, drive: Drive, cause: str, generation: int = 0) -> None:
        """Do what a command asks for. Raises EstopLatched, Refused or DeviceFault, and then nothing has changed.

        Only a release that fails is different: it goes on being tried.
        """
        if self._latch and drive is not Drive.LIMP:  # somebody may be caught under an arm that holds
            raise EstopLatched(f"The emergency stop is latched: {self._latch.cause}.", "Run `so-agent reset` first.")
        if self._leaving and drive is not Drive.LIMP:
            raise Refused(f"The arm is being parked: {self._leaving}.", "Wait, then start the agent again.")
        match drive:
            case Drive.LIMP:
                self._release(cause)
                if self._release_wanted:
                    raise DeviceFault(
                        f"Not released yet: {self.reason}", "It is tried on. Hold the arm, cut its power."
                    )
            case Drive.HOLD:
                self._engage()
                self._hold(cause)
            case Drive.PARK:
                self._engage()
                self._enter(Drive.PARK, cause)
            case Drive.ALIGN:
                self._require_leader()
                self._engage()
                if self.drive is not Drive.FOLLOW:
                    self._enter(Drive.ALIGN, cause)
            case Drive.EXECUTE:
                self._executor.admit(generation)
                self._require_power()
                self._engage()
                self._executor.begin(generation)
                self._enter(Drive.EXECUTE, cause)
            case _:
                raise Refused(f"The drive {drive} cannot be asked for.", "Ask for hold, align, execute, park or limp.")

    def leave(self, cause: str) -> None:
        """Park, release, exit."""
        self._leaving, self._forsaken = cause, False
        self._leave_by_ns = self._clock.now_ns()
        self._leave_attempts = self.bus.attempts
        if self.drive not in TORQUED:
            return
        try:
            self._engage()
        except DeviceFault as error:
            logger.warning("leaving without parking", reason=str(error))
            return  # the next tick releases
        if self.command:
            parking_s = self._course.parking_s(self.command, self.bus.limits)
            self._leave_by_ns += nanoseconds(parking_s + 2 * SETTLE_S)
            self._enter(Drive.PARK, cause)

    def _enter(self, drive: Drive, reason: str) -> None:
        if drive is not self.drive:
            logger.info("drive", before=str(self.drive), after=str(drive), cause=reason)
            self._course.begin()
        if drive is not Drive.EXECUTE:
            self._executor.end()
        self.drive, self.reason = drive, reason
        self._course.stay_at = None
        self._arrived_ns = None

    def _hold(self, reason: str) -> None:
        self._enter(Drive.HOLD, reason)

    def _require_leader(self) -> None:
        if not self._leader.fresh(self._clock.now_ns()):
            raise DeviceFault("There is no reading of the leader arm.", self._leader.reason)
        self._require_power()

    def _require_power(self) -> None:
        if low := self.health.verdict().low_voltage:
            raise DeviceFault(f"Low voltage at {', '.join(low)}.", "Check the power supply.")

    def _engage(self) -> None:
        """Torque on where it is off, without a jump. Raises DeviceFault."""
        follower = self.bus.online()
        if follower.problem:
            raise follower.problem
        if hot := self.health.verdict().hot:
            if follower.engaged:
                return  # holding or parking a hot arm is better than dropping it
            raise DeviceFault(f"{', '.join(hot)} too hot.", "Let the arm cool down first.")
        if follower.engaged and not follower.lost:
            return
        self.busy = True
        try:
            self.command = follower.engage(self.command)
        except PortLost as error:
            self.bus.lose(str(error))
            raise
        self._sent_ns = self._clock.now_ns()

    def _release(self, reason: str) -> None:
        """Torque off, as a wish or as the last resort. What fails is tried again every tick."""
        self.busy = True
        self.command = None
        self._release_wanted = True
        if self.bus.follower is None:
            return
        if self._latch:
            reason = f"{self._latch.reason}; released"
        elif self.drive is not Drive.LIMP:
            self._enter(Drive.LIMP, reason)
        with self.bus.guarded():
            failed = self.bus.follower.release()
            self._release_wanted = bool(failed)
            if self._latch:
                self.estop_verified = not failed
            self.reason = f"could not release {', '.join(failed)}; trying on" if failed else reason

    # --- the bus comes and goes ---

    def _on_lost(self, reason: str) -> None:
        self.command = None
        self.measured = None
        self._reflexes.forget_stall()
        if self._latch:
            self.estop_verified = False
        else:
            self._enter(Drive.OFFLINE, reason)

    def _adopt(self, follower: Follower, cause: str) -> None:
        """Take the arm as it is: torque, and goals as the last command."""
        self.command = follower.command() if follower.engaged else None
        self._sent_ns = self._clock.now_ns()
        self._reflexes.adopt(follower.lost)
        problem = f"; must not move: {follower.problem}" if follower.problem else ""
        if follower.lost:
            self._hold(f"{cause}; {', '.join(follower.lost)} lost torque; the servo rebooted{problem}")
        elif follower.engaged:
            self._hold(f"{cause}; torque was on, holding where it was{problem}")
        else:
            self._enter(Drive.LIMP, f"{cause}; torque is off{problem}")

    # --- e-stop ---

    def emergency(self, cause: str) -> None:
        """Stop now and latch. `estop_verified` tells whether the servos were read back."""
        if self._latch is None:
            self._latch = estop.Latch(cause, self._clock.wall_s())
            self._enter(Drive.ESTOP, self._latch.reason)
        self._stop()

    def _stop(self) -> None:
        self.busy = True
        self.command = None
        self.estop_verified = False
        if self.bus.follower is None:
            return
        with self.bus.guarded():
            limp = self._config.safety.estop == "limp"
            unproved = self.bus.follower.release() if limp else self.bus.follower.stop()
            self.estop_verified = not unproved

    def reset(self) -> None:
        """Clear the latch; the arm holds if it has torque, and stays limp if not. Raises DeviceFault, Fatal."""
        if self._latch is None:
            return
        if self.bus.follower:
            with self.bus.guarded():
                self.bus.follower.refresh()
        estop.clear(self._config.paths.estop_latch)
        self._latch, self.estop_verified = None, None
        self.busy = True
        if self.bus.follower:
            self._adopt(self.bus.follower, "reset")
        else:
            self._enter(Drive.OFFLINE, self.bus.reason)
