"""The control loop: one thread that owns the follower's bus, to absolute deadlines.

Each tick reads the joints, lets the pilot choose an action, passes it through the safety filter, writes the goals,
publishes a `Tick`, and spends what time is left on servo health. An e-stop interrupts the wait between ticks.
"""

import gc
import os
from typing import Final

from agent.clock import Clock, nanoseconds
from agent.config import StationConfig
from agent.errors import AgentError
from agent.messages import (
    ArmDrive,
    ArmEstop,
    ArmHandover,
    ArmHeartbeat,
    ArmQuery,
    ArmReport,
    ArmReset,
    ArmShutdown,
    Joints,
    Problem,
    Source,
    Tick,
)
from agent.robot.execution import Executor
from agent.robot.leader import Leader
from agent.robot.mailbox import Mailbox
from agent.robot.pacing import Pacer, prefer
from agent.robot.pilot import Pilot
from agent.telemetry import logger
from agent.transport import Publisher

REPORT_S: Final = 0.5

POLL_S: Final = 0.002
"""Spare time that one poll of one servo needs, with the latency of a USB adapter."""

POLL_OVERDUE_S: Final = 0.15
"""Poll at least this often even without spare time: a rebooted servo must be noticed within a second."""

COLLECT_S: Final = 0.003
"""Spare time in which the youngest garbage may be collected."""


class Control:
    """Everything that the control thread owns. `run` is the thread; other threads use `mailbox` only."""

    def __init__(self, config: StationConfig, clock: Clock, mailbox: Mailbox) -> None:
        self._config = config
        self._clock = clock
        self._mailbox = mailbox
        self._pacer = Pacer(clock, config.robot.control_hz)
        self._publisher = Publisher(config.paths.arm_pub)
        self._leader = Leader(config, clock)
        self._executor = Executor(config, clock)
        self._pilot = Pilot(config, clock, self._leader, self._executor)
        self._sent: Joints | None = None
        self._scheduling = "not started"
        self._ticks = 0
        self._limited = 0
        self._reported_ns = 0
        self._reported: tuple[object, ...] = ()

    def run(self) -> None:
        """Until shutdown or handover. Torque is then as the last command left it."""
        self._leader.start()
        self._scheduling = prefer(self._config.robot.realtime_priority)
        gc.collect()
        gc.freeze()
        gc.disable()  # a full collection takes tens of ms with torch imported
        self._pacer.restart()
        logger.info("control loop starts", hz=self._config.robot.control_hz, scheduling=self._scheduling)
        try:
            while not self._pilot.done:
                if self._pacer.wait(self._mailbox.wake):
                    self._tick()
                else:
                    self._stop_if_asked()
        finally:
            self._pilot.bus.close()
            self._leader.close()
            self._executor.close()
            self._publisher.close()

    def _tick(self) -> None:
        pilot = self._pilot
        due_ns, late_ns = self._pacer.begin()
        pilot.busy = False
        self._take_commands()
        pilot.connect()
        measured = pilot.read()
        read_ns = pilot.bus.measured_ns if measured else self._clock.now_ns()
        leader = self._leader.read()
        self._executor.receive()
        self._stop_if_asked()
        pilot.judge(self._mailbox.heard_ns)
        requested, source = pilot.choose()
        self._sent, limits = pilot.send(requested)
        self._limited += bool(limits)
        self._publisher.send(
            Tick(
                seq=self._ticks,
                due_ns=due_ns,
                read_ns=read_ns,
                drive=pilot.drive,
                source=source if self._sent else Source.NONE,
                measured=measured,
                leader=leader,
                requested=requested,
                sent=self._sent,
                limits=limits,
                late_ns=late_ns,
                generation=self._executor.generation,
                plan_ns=self._executor.plan_ns,
            )
        )
        self._ticks += 1
        self._stop_if_asked()
        self._use_spare_time()
        self._pacer.end(forgive=pilot.busy)

    def _stop_if_asked(self) -> None:
        """Called between all steps of a tick that may wait for the bus."""
        self._mailbox.wake.clear()
        while request := self._mailbox.take_stop():
            command, reply = request
            assert isinstance(command, ArmEstop)  # noqa: S101 - the mailbox keeps nothing else there
            self._pilot.emergency(command.cause)
            reply.set_result(self._report())
            self._report_if_due()

    def _take_commands(self) -> None:
        while request := self._mailbox.take():
            command, reply = request
            try:
                match command:
                    case ArmDrive():
                        self._pilot.change(command.drive, command.cause, command.generation)
                    case ArmReset():
                        self._pilot.reset()
                    case ArmShutdown():
                        self._pilot.leave(command.cause)
                    case ArmHandover():
                        self._pilot.done = True
                    case ArmHeartbeat() | ArmQuery() | ArmEstop():
                        pass
            except AgentError as error:
                reply.set_result(Problem(error.code, error.message, error.hint))
            else:
                reply.set_result(self._report())

    def _use_spare_time(self) -> None:
        bus = self._pilot.bus
        overdue = self._clock.now_ns() - bus.polled_ns > nanoseconds(POLL_OVERDUE_S)
        if overdue or self._pacer.spare_s() > POLL_S:
            bus.poll()
        self._report_if_due()
        if self._ticks % self._config.robot.control_hz == 0 and self._pacer.spare_s() > COLLECT_S:
            gc.collect(0)  # what exceptions and their tracebacks leave behind

    def _report_if_due(self) -> None:
        """Twice a second, and at once when something changed that people or the agent act on."""
        pilot = self._pilot
        now = self._clock.now_ns()
        state = (
            pilot.drive,
            pilot.reason,
            pilot.bus.follower is not None,
            self._leader.connected,
            pilot.estop_verified,
            pilot.alone,
            pilot.health.verdict(),
            self._executor.generation,
            self._executor.starved,
        )
        if state != self._reported or now - self._reported_ns >= nanoseconds(REPORT_S):
            self._reported, self._reported_ns = state, now
            self._publisher.send(self._report())

    def _report(self) -> ArmReport:
        pilot = self._pilot
        follower = pilot.bus.follower
        return ArmReport(
            at_ns=self._clock.now_ns(),
            pid=os.getpid(),
            drive=pilot.drive,
            reason=pilot.reason,
            bus_connected=follower is not None,
            leader_connected=self._leader.connected,
            leader_reason=self._leader.reason,
            torque_on=follower is not None and follower.engaged,
            estop_verified=pilot.estop_verified,
            measured=pilot.measured,
            sent=self._sent,
            servos=pilot.health.servos(),
            loop=self._pacer.stats(self._scheduling),
            ticks=self._ticks,
            bus_errors=pilot.bus.errors,
            reconnects=pilot.bus.reconnects,
            limited=self._limited,
            supervisor_lost=pilot.alone,
            config_hash=self._config.hash,
            execution=self._executor.report(),
        )
