"""The control loop: one thread that owns the follower's bus and decides, tick by tick, what is sent to it.

Each tick reads the joints, chooses an action by the present drive, passes it through the safety filter, writes the
goals, publishes a `Tick`, and spends what time is left on servo health.

Rules that hold in every drive:
* Never a jump. Torque comes on with the goal at the present position; holding continues from the last command; an
  arm that is found with torque on is adopted with the goals it has.
* Nothing moves by itself: after a fault, a lost cable or a lost leader, the arm waits for a command.
* Degrade in this order: follow, hold, park slowly, torque off. Heat parks. A stall or an overload holds at the
  present pose, and releases if it lasts; an overloaded gripper is only relieved, because a firm grip looks the same.
* An e-stop is latched, on the bus within 100 ms, proved by reading back, and repeated until it is.
"""

import gc
import os
from typing import Final

from agent.clock import Clock, nanoseconds
from agent.config import StationConfig
from agent.errors import AgentError, DeviceFault, EstopLatched, Refused, Safety
from agent.messages import (
    ArmDrive,
    ArmEstop,
    ArmHandover,
    ArmHeartbeat,
    ArmQuery,
    ArmReport,
    ArmReset,
    ArmShutdown,
    Drive,
    Joints,
    Limit,
    Problem,
    Source,
    Tick,
)
from agent.robot import estop
from agent.robot.calibration import joints
from agent.robot.follower import Follower
from agent.robot.health import Health
from agent.robot.leader import Leader
from agent.robot.mailbox import Mailbox
from agent.robot.pacing import Pacer, prefer
from agent.robot.port import NoReply, PortLost
from agent.robot.safety import filter_action
from agent.robot.trajectory import approach, duration_s
from agent.telemetry import logger
from agent.transport import Publisher

OFFLINE_AFTER_S: Final = 0.2
"""A bus without a good reading for this long is lost. A few corrupt packets in a row are not."""

SUPERVISOR_LOST_S: Final = 3.0
"""Six heartbeats at two a second."""

RECONNECT_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Pauses between attempts; the last one repeats. An attempt on a silent bus takes 0.1 s."""

REPORT_S: Final = 0.5

ALIGNED: Final = 1.5
"""Following begins when every joint is this close to the leader. Degrees or percent."""

SETTLED: Final = 3.0
"""A parked arm has arrived when it is measured this close to where it was sent. Degrees or percent."""

SETTLE_S: Final = 1.0
"""... or this long after it should have: it may lie on the table by then."""

STALL_RELEASE_S: Final = 2.0
"""A stall that lasts this long although the goal is at the present pose is a jam: torque off."""

GRIP_RELIEF_PCT: Final = 5.0
"""How far an overloaded gripper's goal may be from where it is: enough to keep a grip."""

HEALTH_POLL_S: Final = 0.002
"""Spare time that one poll of one servo needs, with the latency of a USB adapter."""

HEALTH_OVERDUE_S: Final = 0.15
"""Poll at least this often even without spare time: a rebooted servo must be noticed within a second."""

MOVING: Final = frozenset({Drive.ALIGN, Drive.FOLLOW, Drive.EXECUTE})
TORQUED: Final = frozenset({Drive.HOLD, Drive.ALIGN, Drive.FOLLOW, Drive.EXECUTE, Drive.PARK})


class Control:
    """Everything that the control thread owns. `run` is the thread; other threads use `mailbox` only."""

    def __init__(self, config: StationConfig, clock: Clock, mailbox: Mailbox) -> None:
        self._config = config
        self._clock = clock
        self._mailbox = mailbox
        self._pacer = Pacer(clock, config.robot.control_hz)
        self._publisher = Publisher(config.paths.arm_pub)
        self._leader = Leader(config, clock)
        self._health = Health(config.safety)
        self._follower: Follower | None = None
        self._latch = estop.read(config.paths.estop_latch)
        self._estop_verified: bool | None = None if self._latch is None else False
        self._drive = Drive.OFFLINE if self._latch is None else Drive.ESTOP
        self._reason = "connecting" if self._latch is None else f"emergency stop: {self._latch.cause}"
        self._command: Joints | None = None  # the last pose that was sent, before rounding
        self._target: Joints | None = None  # where HOLD goes, when not simply to the last command
        self._sent: Joints | None = None
        self._sent_ns = 0
        self._measured: Joints | None = None
        self._measured_ns = 0
        self._answered_ns = 0
        self._arrived_ns: int | None = None
        self._stalled_ns: int | None = None
        self._low_voltage = False
        self._release_wanted = False
        self._polled = 0
        self._polled_ns = 0
        self._attempts = 0
        self._attempt_ns = 0
        self._leaving: str | None = None
        self._leave_by_ns = 0
        self._alone = False
        self._busy = False  # this tick did something that may take longer than a period
        self._done = False
        self._scheduling = "not started"
        self._ticks = 0
        self._bus_errors = 0
        self._reconnects = 0
        self._limited = 0
        self._reported_ns = 0
        self._reported: ArmReport | None = None

    # --- the loop ---

    def run(self) -> None:
        """Until shutdown or handover. Torque is then as the last command left it."""
        self._leader.start()
        self._scheduling = prefer(self._config.robot.realtime_priority)
        gc.collect()
        gc.freeze()
        gc.disable()  # a collection takes tens of ms with torch imported
        self._pacer.restart()
        logger.info("control loop starts", hz=self._config.robot.control_hz, scheduling=self._scheduling)
        try:
            while not self._done:
                if self._pacer.wait(self._mailbox.wake):
                    self._tick()
                else:
                    self._emergency_if_asked()
        finally:
            self._lose_bus()
            self._leader.close()
            self._publisher.close()

    def _tick(self) -> None:
        due_ns, late_ns = self._pacer.begin()
        self._busy = False
        self._take_commands()
        if self._follower is None:
            self._try_to_connect()
        measured = self._read()
        leader = self._leader.read()
        self._emergency_if_asked()
        self._judge()
        requested, source = self._choose()
        sent, limits = self._send(requested)
        self._publisher.send(
            Tick(
                seq=self._ticks,
                due_ns=due_ns,
                read_ns=self._measured_ns if measured else self._clock.now_ns(),
                drive=self._drive,
                source=source if sent else Source.NONE,
                measured=measured,
                leader=leader,
                requested=requested,
                sent=sent,
                limits=limits,
                late_ns=late_ns,
            )
        )
        self._ticks += 1
        self._emergency_if_asked()
        self._poll_health()
        self._report_if_due()
        self._pacer.end(forgive=self._busy or self._follower is None)

    def _read(self) -> Joints | None:
        """Measured joints of this tick, or None; never those of an earlier one."""
        self._measured = None
        follower = self._follower
        if follower is None:
            return None
        try:
            self._measured = follower.read()
        except NoReply:
            self._bus_errors += 1
            if self._clock.now_ns() - self._answered_ns > nanoseconds(OFFLINE_AFTER_S):
                self._bus_lost("The servos do not answer.")
            return None
        except PortLost as error:
            self._bus_errors += 1
            self._bus_lost(str(error))
            return None
        self._answered_ns = self._clock.now_ns()
        self._health.saw_bits(follower.status_bits)
        if self._measured is not None:
            self._measured_ns = self._answered_ns
        return self._measured

    def _send(self, requested: Joints | None) -> tuple[Joints | None, tuple[Limit, ...]]:
        self._sent = None
        follower = self._follower
        if requested is None or follower is None or follower.limits is None or self._command is None:
            return None, ()
        now = self._clock.now_ns()
        period_s = 1 / self._config.robot.control_hz
        # After a pause the arm may not make up for the time lost.
        dt_s = min(max((now - self._sent_ns) / 1e9, period_s / 2), period_s * 2)
        try:
            allowed, limits = filter_action(requested, self._command, follower.limits, dt_s)
        except Safety as error:
            self._hold(error.message)
            return None, ()
        try:
            self._sent = follower.send(allowed)
        except NoReply:
            return None, limits
        except PortLost as error:
            self._bus_lost(str(error))
            return None, limits
        self._command, self._sent_ns = allowed, now
        self._limited += bool(limits)
        return self._sent, limits

    # --- which action ---

    def _choose(self) -> tuple[Joints | None, Source]:
        command = self._command
        if command is None or self._drive not in TORQUED:
            return None, Source.NONE
        slow = self._config.safety.slow_speed_deg_s
        dt_s = 1 / self._config.robot.control_hz
        match self._drive:
            case Drive.ALIGN if self._leader.joints:
                if _distance(command, self._leader.joints) <= ALIGNED:
                    self._enter(Drive.FOLLOW, "following the leader")
                return approach(command, self._leader.joints, slow, dt_s), Source.ALIGN
            case Drive.FOLLOW if self._leader.joints:
                return self._relieved(self._leader.joints), Source.LEADER
            case Drive.PARK:
                return approach(command, self._park_pose(), slow, dt_s), Source.PARK
            case _:
                return self._target or command, Source.HOLD

    def _relieved(self, action: Joints) -> Joints:
        """Keeps an overloaded gripper from pushing harder than a grip needs."""
        if self._measured is None or not self._health.verdict().gripper_overload:
            return action
        here = self._measured[-1]
        return joints([*action[:-1], min(max(action[-1], here - GRIP_RELIEF_PCT), here + GRIP_RELIEF_PCT)])

    def _park_pose(self) -> Joints:
        pose = joints(list(self._config.safety.park.model_dump().values()))
        limits = self._follower.limits if self._follower else None
        if limits is None:
            return pose
        return joints([min(max(v, lo), hi) for v, lo, hi in zip(pose, limits.low, limits.high, strict=True)])

    # --- what forces another drive ---

    def _judge(self) -> None:
        now = self._clock.now_ns()
        self._mind_the_supervisor(now)
        follower = self._follower
        if follower is None:
            return
        if self._drive is Drive.ESTOP:
            if not self._estop_verified:
                self._stop_the_arm()
            return
        if self._drive is Drive.LIMP:
            if self._release_wanted:
                self._release(self._reason)
            return
        if not follower.engaged:
            self._enter(Drive.LIMP, "all servos lost their torque; was the power interrupted?")
        elif follower.lost and (self._drive in MOVING or self._drive is Drive.PARK):
            self._hold(f"{', '.join(follower.lost)} lost torque; the servo rebooted")
        self._mind_readings(now)
        self._mind_health(now)
        if self._drive is Drive.PARK:
            self._mind_arrival(now)

    def _mind_readings(self, now: int) -> None:
        if self._drive not in MOVING and self._drive is not Drive.PARK:
            return
        stale_ms = self._config.safety.stale_action_ms
        if now - self._measured_ns > stale_ms * 1e6:
            self._hold(f"the joints could not be read for {stale_ms:.0f} ms; start again when they can")
        elif self._drive in (Drive.ALIGN, Drive.FOLLOW) and not self._leader.fresh(now):
            why = f" ({self._leader.reason})" if self._leader.reason else ""
            self._hold(f"no leader reading for {stale_ms:.0f} ms{why}; start teleop again to align")

    def _mind_health(self, now: int) -> None:
        verdict = self._health.verdict()
        low_voltage = bool(verdict.low_voltage)
        if low_voltage and (self._drive in MOVING or (self._drive is Drive.PARK and not self._low_voltage)):
            self._hold(f"low voltage at {', '.join(verdict.low_voltage)}; check the power supply")
        self._low_voltage = low_voltage
        if not verdict.stalled:
            self._stalled_ns = None
        elif self._drive in TORQUED and self._stalled_ns is None:
            self._stalled_ns = now
            self._hold(f"{', '.join(verdict.stalled)} stalled or overloaded; holding where it is")
            if self._measured and self._command:
                self._target = self._measured
        elif self._drive in TORQUED and self._stalled_ns and now - self._stalled_ns > nanoseconds(STALL_RELEASE_S):
            self._release(f"{', '.join(verdict.stalled)} jammed; released to save the motor")
        if verdict.hot and self._drive in TORQUED - {Drive.PARK}:
            hot = f"{', '.join(verdict.hot)} too hot"
            if self._command is None:
                self._release(f"{hot}; released")
            else:
                self._park(f"{hot}; parking to let it cool down")

    def _mind_arrival(self, now: int) -> None:
        """Torque goes off once the arm lies where it was sent."""
        target = self._park_pose()
        if self._command is None or _distance(self._command, target) > 1e-6:
            self._arrived_ns = None
            return
        self._arrived_ns = self._arrived_ns or now
        settled = self._measured is not None and _distance(self._measured, target) <= SETTLED
        if settled or now - self._arrived_ns > nanoseconds(SETTLE_S):
            self._release(f"parked: {self._reason}")

    def _mind_the_supervisor(self, now: int) -> None:
        silent_ns = now - self._mailbox.heard_ns
        was_alone, self._alone = self._alone, silent_ns > nanoseconds(SUPERVISOR_LOST_S)
        if self._alone and self._drive in MOVING:
            self._hold("the agent is gone; holding")
        if was_alone and not self._alone and self._leaving:
            self._leaving = None
            if self._drive is Drive.PARK:
                self._hold("the agent is back")
        park_after_s = self._config.safety.hold_park_after_s
        if self._alone and park_after_s is not None and silent_ns > nanoseconds(park_after_s) and not self._leaving:
            self._leave("the agent did not come back")
        if self._leaving:
            self._mind_leaving(now)

    def _mind_leaving(self, now: int) -> None:
        if self._drive in (Drive.LIMP, Drive.OFFLINE, Drive.ESTOP):
            # An e-stopped arm is left as it is: latched, and not to be moved.
            self._done = True
        elif self._drive is not Drive.PARK or now > self._leave_by_ns:
            self._release(f"{self._leaving}; released without reaching the park pose")

    # --- changes of drive ---

    def _enter(self, drive: Drive, reason: str) -> None:
        if drive is not self._drive:
            logger.info("drive", before=str(self._drive), after=str(drive), cause=reason)
        self._drive, self._reason = drive, reason
        self._target = None
        self._arrived_ns = None

    def _hold(self, reason: str) -> None:
        self._enter(Drive.HOLD, reason)

    def _park(self, reason: str) -> None:
        self._enter(Drive.PARK, reason)

    def _engage(self) -> None:
        """Torque on where it is off, without a jump. Raises DeviceFault."""
        follower = self._online()
        if follower.engaged and not follower.lost:
            if follower.problem:
                raise follower.problem
            return
        verdict = self._health.verdict()
        if verdict.hot:
            raise DeviceFault(f"{', '.join(verdict.hot)} too hot.", "Let the arm cool down first.")
        self._busy = True
        before = dict(follower.torque_on)
        follower.engage()
        follower.refresh()
        fresh = follower.command()
        if self._command is None or not any(before.values()):
            self._command = fresh
        elif fresh:
            # The servos that never lost torque continue from their last command, the others from where they are.
            self._command = joints(
                [c if on else f for c, f, on in zip(self._command, fresh, before.values(), strict=True)]
            )
        self._sent_ns = self._clock.now_ns()

    def _release(self, reason: str) -> None:
        """Torque off, last resort or wish. What fails is tried again every tick."""
        self._busy = True
        self._command = None
        self._enter(Drive.LIMP, reason)
        self._release_wanted = True
        if self._follower is None:
            return
        try:
            self._follower.release()
            self._release_wanted = False
        except PortLost as error:
            self._bus_lost(str(error))
        except DeviceFault as error:
            self._reason = f"{reason}; {error.message}"

    def _leave(self, cause: str) -> None:
        """Park, release, exit."""
        self._leaving = cause
        self._leave_by_ns = self._clock.now_ns()
        if self._drive in TORQUED and self._command is not None:
            seconds = duration_s(self._command, self._park_pose(), self._config.safety.slow_speed_deg_s)
            self._leave_by_ns += nanoseconds(seconds + 2 * SETTLE_S)
            self._park(cause)

    # --- the bus comes and goes ---

    def _online(self) -> Follower:
        if self._follower is None:
            raise DeviceFault(f"The follower arm is offline: {self._reason}")
        return self._follower

    def _lose_bus(self) -> None:
        if self._follower:
            self._follower.close()
        self._follower = None

    def _bus_lost(self, reason: str) -> None:
        self._lose_bus()
        self._health.forget()
        self._command = None
        self._measured = None
        self._stalled_ns = None
        self._attempts = 0
        self._attempt_ns = self._clock.now_ns() + nanoseconds(RECONNECT_S[0])
        logger.warning("follower lost", reason=reason)
        if self._latch:
            self._estop_verified = False
        else:
            self._enter(Drive.OFFLINE, reason)

    def _try_to_connect(self) -> None:
        if self._clock.now_ns() < self._attempt_ns:
            return
        try:
            follower = Follower.connect(self._config, release=self._release_wanted)
        except AgentError as error:
            pause_s = RECONNECT_S[min(self._attempts, len(RECONNECT_S) - 1)]
            self._attempts += 1
            self._attempt_ns = self._clock.now_ns() + nanoseconds(pause_s)
            if self._latch is None and self._reason != str(error):
                self._enter(Drive.OFFLINE, str(error))
                logger.warning("follower not connected", reason=str(error))
            return
        self._release_wanted = False
        self._reconnects += bool(self._ticks and self._answered_ns)
        self._answered_ns = self._measured_ns = self._clock.now_ns()
        self._follower = follower
        if self._latch:
            self._stop_the_arm()
        else:
            self._adopt(follower, "connected")

    def _adopt(self, follower: Follower, cause: str) -> None:
        """Take the arm as it is: torque, and goals as the last command."""
        self._command = follower.command() if follower.engaged else None
        self._sent_ns = self._clock.now_ns()
        problem = f"; must not move: {follower.problem}" if follower.problem else ""
        if follower.lost:
            self._enter(Drive.HOLD, f"{cause}; {', '.join(follower.lost)} lost torque; the servo rebooted{problem}")
        elif follower.engaged:
            self._enter(Drive.HOLD, f"{cause}; torque was on, holding where it was{problem}")
        else:
            self._enter(Drive.LIMP, f"{cause}; torque is off{problem}")

    # --- e-stop ---

    def _emergency_if_asked(self) -> None:
        self._mailbox.wake.clear()
        while request := self._mailbox.take_stop():
            command, reply = request
            assert isinstance(command, ArmEstop)  # noqa: S101 - what the mailbox keeps there
            if self._latch is None:
                self._latch = estop.Latch(command.cause, self._clock.wall_s())
                self._enter(Drive.ESTOP, f"emergency stop: {command.cause}")
            self._estop_verified = False
            self._stop_the_arm()
            reply.set_result(self._report())
            self._report_if_due()

    def _stop_the_arm(self) -> None:
        """Apply the e-stop to the bus and prove it. What is not proved is tried again every tick."""
        self._busy = True
        self._command = None
        if self._follower is None:
            return
        try:
            unproved = self._follower.drop() if self._config.safety.estop == "limp" else self._follower.stop()
        except NoReply:
            return
        except PortLost as error:
            self._bus_lost(str(error))
            return
        self._estop_verified = not unproved

    def _reset(self) -> None:
        if self._latch is None:
            return
        estop.clear(self._config.paths.estop_latch)
        self._latch, self._estop_verified = None, None
        self._busy = True
        if self._follower is None:
            self._enter(Drive.OFFLINE, "reset; the arm is offline")
            return
        self._follower.refresh()
        self._adopt(self._follower, "reset")

    # --- commands ---

    def _take_commands(self) -> None:
        while request := self._mailbox.take():
            command, reply = request
            try:
                match command:
                    case ArmDrive():
                        self._change_drive(command.drive, command.cause)
                    case ArmReset():
                        self._reset()
                    case ArmHandover():
                        self._done = True
                    case ArmShutdown():
                        self._leave(command.cause)
                    case ArmHeartbeat() | ArmQuery() | ArmEstop():
                        pass
                reply.set_result(self._report())
            except AgentError as error:
                reply.set_result(Problem(error.code, error.message, error.hint))
                if isinstance(error, PortLost):
                    self._bus_lost(str(error))

    def _change_drive(self, drive: Drive, cause: str) -> None:
        if self._latch:
            raise EstopLatched(f"The emergency stop is latched: {self._latch.cause}.", "Run `so-agent reset` first.")
        if self._leaving and drive is not Drive.LIMP:
            raise Refused(f"The arm is being parked: {self._leaving}.", "Wait, then start the agent again.")
        match drive:
            case Drive.LIMP:
                self._release(cause)
                if self._release_wanted:
                    raise DeviceFault(f"Not released yet: {self._reason}.", "Trying on. Hold the arm, cut its power.")
            case Drive.HOLD:
                self._engage()
                self._hold(cause)
            case Drive.PARK:
                self._engage()
                self._park(cause)
            case Drive.ALIGN:
                if not self._leader.fresh(self._clock.now_ns()):
                    raise DeviceFault("There is no reading of the leader arm.", self._leader.reason)
                if low := self._health.verdict().low_voltage:
                    raise DeviceFault(f"Low voltage at {', '.join(low)}.", "Check the power supply.")
                if self._drive is not Drive.FOLLOW:
                    self._engage()
                    self._enter(Drive.ALIGN, cause)
            case Drive.EXECUTE:
                raise Refused("There is no policy.", "Start one first.")
            case _:
                raise Refused(f"The drive {drive} cannot be asked for.", "Ask for hold, align, park or limp.")

    # --- health and reports ---

    def _poll_health(self) -> None:
        """One servo a tick, in turn."""
        follower = self._follower
        now = self._clock.now_ns()
        overdue = now - self._polled_ns > nanoseconds(HEALTH_OVERDUE_S)
        if follower is None or (self._pacer.spare_s() < HEALTH_POLL_S and not overdue):
            return
        name = tuple(follower.torque_on)[self._polled % len(follower.torque_on)]
        self._polled += 1
        self._polled_ns = now
        try:
            live = follower.live_of(name)
        except NoReply:
            self._bus_errors += 1
            return
        except PortLost as error:
            self._bus_lost(str(error))
            return
        self._health.saw(name, live, now)
        follower.torque_on[name] = live.torque_on
        if live.torque_on and self._drive is Drive.LIMP:
            self._release_wanted = True
        if self._drive is Drive.ESTOP and self._config.safety.estop == "limp" and live.torque_on:
            self._estop_verified = False

    def _report(self) -> ArmReport:
        follower = self._follower
        return ArmReport(
            at_ns=self._clock.now_ns(),
            pid=os.getpid(),
            drive=self._drive,
            reason=self._reason,
            bus_connected=follower is not None,
            leader_connected=self._leader.connected,
            leader_reason=self._leader.reason,
            torque_on=follower is not None and follower.engaged,
            estop_verified=self._estop_verified,
            measured=self._measured,
            sent=self._sent,
            servos=self._health.servos(),
            loop=self._pacer.stats(self._scheduling),
            ticks=self._ticks,
            bus_errors=self._bus_errors,
            reconnects=self._reconnects,
            limited=self._limited,
            supervisor_lost=self._alone,
            config_hash=self._config.hash,
        )

    def _report_if_due(self) -> None:
        """Twice a second, and at once when something changed that people or the agent act on."""
        now = self._clock.now_ns()
        old = self._reported
        follower = self._follower
        changed = old is None or (
            (old.drive, old.reason, old.bus_connected, old.leader_connected, old.estop_verified, old.supervisor_lost)
            != (
                self._drive,
                self._reason,
                follower is not None,
                self._leader.connected,
                self._estop_verified,
                self._alone,
            )
        )
        if changed or now - self._reported_ns >= nanoseconds(REPORT_S):
            self._reported, self._reported_ns = self._report(), now
            self._publisher.send(self._reported)


def _distance(a: Joints, b: Joints) -> float:
    """The largest difference of any joint."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))
