"""The follower's bus as it comes and goes: reconnecting with back-off, and counting what fails."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from agent.clock import Clock, nanoseconds
from agent.config import StationConfig
from agent.errors import AgentError, DeviceFault
from agent.messages import Joints
from agent.robot.follower import Follower
from agent.robot.health import Health
from agent.robot.port import NoReply, PortLost
from agent.robot.safety import Limits
from agent.telemetry import logger

OFFLINE_AFTER_S: Final = 0.2
"""A bus without a good reading for this long is lost. A few corrupt packets in a row are not."""

RECONNECT_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Pauses between attempts; the last one repeats. An attempt on a silent bus takes 0.1 s."""


class Connection:
    """Holds the present `Follower`, or None and the reason why there is none.

    `on_lost` is called once whenever a follower is lost; all that was known about the arm is void then.
    """

    def __init__(self, config: StationConfig, clock: Clock, health: Health, on_lost: Callable[[str], None]) -> None:
        self._config = config
        self._clock = clock
        self._health = health
        self._on_lost = on_lost
        self._failures = 0
        self._attempt_ns = 0
        self._answered_ns = 0
        self._polled = 0
        self.polled_ns = 0
        self.follower: Follower | None = None
        self.reason = "connecting"
        self.attempts = 0  # to connect, since start
        self.errors = 0  # failed reads since start
        self.reconnects = 0
        self.measured_ns = 0  # when the joints were last read

    def online(self) -> Follower:
        """The follower. Raises DeviceFault while there is none."""
        if self.follower is None:
            raise DeviceFault(f"The follower arm is offline: {self.reason}")
        return self.follower

    @property
    def limits(self) -> Limits | None:
        """How far the joints may go; None while that is not known."""
        return self.follower.limits if self.follower else None

    def try_to_connect(self, release: bool) -> Follower | None:
        """One attempt, when one is due. With `release` every servo that answers loses its torque."""
        if self._clock.now_ns() < self._attempt_ns:
            return None
        self.attempts += 1
        try:
            follower = Follower.connect(self._config, release)
        except AgentError as error:
            pause_s = RECONNECT_S[min(self._failures, len(RECONNECT_S) - 1)]
            self._failures += 1
            self._attempt_ns = self._clock.now_ns() + nanoseconds(pause_s)
            if self.reason != str(error):
                logger.warning("follower not connected", reason=str(error))
            self.reason = str(error)
            return None
        self.reconnects += self._answered_ns > 0
        self.reason = ""
        self._answered_ns = self.measured_ns = self._clock.now_ns()
        self.follower = follower
        logger.info("follower connected", torque_on=follower.torque_on, settings_waiting=follower.waiting)
        return follower

    def read(self) -> Joints | None:
        """The joints as they are now, or None; never as they were."""
        measured = None
        with self.guarded():
            if self.follower is None:
                return None
            try:
                measured = self.follower.read()
            except NoReply:
                self.errors += 1
                if self._clock.now_ns() - self._answered_ns > nanoseconds(OFFLINE_AFTER_S):
                    self.lose("The servos do not answer.")
                return None
            self._answered_ns = self._clock.now_ns()
            self._health.saw_bits(self.follower.status_bits)
            if measured is not None:
                self.measured_ns = self._answered_ns
        return measured

    def poll(self) -> None:
        """Ask one servo how it is; each in turn."""
        with self.guarded():
            if self.follower is None:
                return
            name = tuple(self.follower.torque_on)[self._polled % len(self.follower.torque_on)]
            self._polled += 1
            self.polled_ns = self._clock.now_ns()
            try:
                live = self.follower.live_of(name)
            except NoReply:
                self.errors += 1
                return
            self._health.saw(name, live, self.polled_ns)
            self.follower.torque_on[name] = live.torque_on

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Whatever happens to the port inside ends in `lose`, not in an exception."""
        try:
            yield
        except PortLost as error:
            self.errors += 1
            self.lose(str(error))

    def lose(self, reason: str) -> None:
        """Throw the driver object away; a lost lerobot object stays connected, busy and useless for ever."""
        if self.follower is None:
            return
        self.close()
        self._health.forget()
        self._failures = 0
        self._attempt_ns = self._clock.now_ns() + nanoseconds(RECONNECT_S[0])
        self.reason = reason
        logger.warning("follower lost", reason=reason)
        self._on_lost(reason)

    def close(self) -> None:
        """Let go of the port; torque stays as it is."""
        if self.follower:
            self.follower.close()
        self.follower = None
