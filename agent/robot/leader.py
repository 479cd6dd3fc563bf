"""The leader arm, which a person moves. Its torque is always off.

Read from the control thread with a short time-out; connected from a thread of its own, so that an unplugged or
unpowered leader never costs the follower more than a few missed readings.
"""

import threading
from typing import Final

from agent.clock import Clock, nanoseconds
from agent.config import StationConfig
from agent.errors import AgentError, DeviceFault
from agent.messages import JOINTS, Joints
from agent.robot.bus import ServoBus
from agent.robot.calibration import Match, Scale
from agent.robot.port import NoReply, PortLost
from agent.robot.registers import SERVO_IDS
from agent.telemetry import logger

SHARE_OF_PERIOD: Final = 0.25
"""A silent leader may cost at most this share of a tick."""

GIVE_UP_S: Final = 0.3
"""A leader that is silent for this long is disconnected; then it costs nothing until it is back."""

BACKOFF_S: Final = (0.2, 0.5, 1.0)
"""Pauses between attempts to connect; the last one repeats."""


class Leader:
    """Owns the leader's bus. `read` belongs to the control thread, everything else to this object's own."""

    def __init__(self, config: StationConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._bus: ServoBus | None = None
        self._scale: Scale | None = None
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._answered_ns = 0
        self.reason = "connecting"
        self.joints: Joints | None = None  # the last reading since it was connected
        self.read_ns = 0  # when it was made
        self._thread: threading.Thread | None = None
        if config.robot.leader is None:
            self.reason = "this station has no leader arm"

    @property
    def connected(self) -> bool:
        """Whether its pose is being read."""
        return self._bus is not None and self.joints is not None

    def start(self) -> None:
        if self._config.robot.leader is None:
            return
        self._wanted.set()
        self._thread = threading.Thread(target=self._connect_for_ever, name="leader", daemon=True)
        self._thread.start()

    def read(self) -> Joints | None:
        """The leader's pose now, or None. Never blocks longer than a share of a tick."""
        bus, scale = self._bus, self._scale
        if bus is None or scale is None:
            return None
        try:
            self.joints = scale.to_units(bus.positions())
        except NoReply:
            if self._clock.now_ns() - self._answered_ns > nanoseconds(GIVE_UP_S):
                self._discard("The leader does not answer; is its power supply on?")
            return None
        except PortLost as error:
            self._discard(error.message)
            return None
        self.read_ns = self._answered_ns = self._clock.now_ns()
        return self.joints

    def fresh(self, now_ns: int) -> bool:
        """Whether there is a reading young enough to be followed."""
        return self.joints is not None and now_ns - self.read_ns <= self._config.safety.stale_action_ms * 1e6

    def close(self) -> None:
        self._closing.set()
        self._wanted.set()
        if self._thread:
            self._thread.join(2.0)  # one attempt to connect takes 0.1 s
        if self._bus:
            self._bus.close()

    def _discard(self, reason: str) -> None:
        if self._bus:
            self._bus.close()
        self._bus = None
        self.joints = None
        self.reason = reason
        logger.warning("leader lost", reason=reason)
        self._wanted.set()

    def _connect_for_ever(self) -> None:
        failures = 0
        while not self._closing.is_set():
            self._wanted.wait()
            if self._closing.is_set():
                return
            try:
                bus = self._connect()
            except AgentError as error:
                if self.reason != str(error):
                    logger.warning("leader not connected", reason=str(error))
                self.reason = str(error)
                self._closing.wait(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
                failures += 1
                continue
            failures = 0
            self.reason = ""
            self._answered_ns = self._clock.now_ns()
            self._wanted.clear()
            self._bus = bus  # last: from here on the control thread reads it
            logger.info("leader connected", port=str(bus.arm.bus.port))

    def _connect(self) -> ServoBus:
        bus = ServoBus(self._config, "leader")
        try:
            bus.open()
            if failed := bus.release():
                listed = ", ".join(f"{name} (id {SERVO_IDS[name]})" for name in failed)
                if len(failed) == len(JOINTS):
                    raise DeviceFault("No servo of the leader answers.", "Is its power supply on?")
                raise DeviceFault(f"The leader's {listed} could not be released.", "Check its cables.")
            servos = bus.settings()
            report = bus.compare_calibration(servos)
            if report.match is not Match.SAME or bus.calibration is None:
                raise DeviceFault(f"Leader: {report.problem}", report.hint)
            bus.configure(servos, limp=True)
            self._scale = Scale(bus.calibration)
            bus.port.timeout_ms = min(bus.port.timeout_ms, 1000 / self._config.robot.control_hz * SHARE_OF_PERIOD)
        except BaseException:
            bus.close()
            raise
        return bus
