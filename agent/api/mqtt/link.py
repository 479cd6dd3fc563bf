"""The way from this process to the station: the daemon's socket, the arm's publisher, and the arm's own stop."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Final, Protocol

import msgspec

from agent.api.local import AsyncClient, Progress
from agent.api.mqtt.messages import Telemetry, stamp
from agent.clock import Clock, nanoseconds
from agent.config import Paths
from agent.errors import AgentError, DeviceFault, NotRunning
from agent.messages import ArmEstop, ArmQuery, ArmReply, ArmReport, Tick
from agent.telemetry import logger
from agent.transport import AsyncCommandClient, AsyncSubscriber, is_served

VIA: Final = "mqtt"

ARM_ANSWER_S: Final = 1.0
STOP_READ_BACK_S: Final = 1.0
"""The servos are read back within 100 ms; a bus that has to reconnect takes longer."""

LOOK_S: Final = 0.01

DAEMON_TOLD_S: Final = 2.0

STALE_S: Final = 2.0
"""The arm publishes ten ticks a second at least; older than this is not what the arm does now."""

POWER_OFF: Final = "Switch off the arm's power supply."


class Link(Protocol):
    """What the surface needs of a station."""

    async def call(
        self, verb: str, args: dict[str, Any], timeout_s: float, on_progress: Progress | None = None
    ) -> dict[str, Any]:
        """Raises AgentError."""
        ...

    def events(self, since: int) -> AsyncGenerator[dict[str, Any]]:
        """As `AsyncClient.events`."""
        ...

    async def estop(self, cause: str) -> dict[str, Any]:
        """Stop the arm and read it back. Raises AgentError when that could not be confirmed."""
        ...

    def telemetry(self) -> Telemetry | None:
        """The newest numbers; None while there are none, or old ones."""
        ...


class StationLink:
    """`Link` to the daemon and the arm process of this machine."""

    def __init__(self, paths: Paths, clock: Clock) -> None:
        self._paths = paths
        self._clock = clock
        self._daemon = AsyncClient(paths.agent_socket, via=VIA)
        self._arm: AsyncCommandClient[ArmReport] = AsyncCommandClient(paths.arm_ctl, ArmReply)
        self._tick: Tick | None = None
        self._report: ArmReport | None = None
        self.events = self._daemon.events
        self.stay_alive = self._daemon.stay_alive

    async def call(
        self, verb: str, args: dict[str, Any], timeout_s: float, on_progress: Progress | None = None
    ) -> dict[str, Any]:
        return await self._daemon.call(verb, args, timeout_s, on_progress)

    async def estop(self, cause: str) -> dict[str, Any]:
        """Straight to the arm process, which listens also while the daemon hangs."""
        if not is_served(self._paths.arm_ctl):
            raise NotRunning("No arm process listens. The arm was NOT stopped.", POWER_OFF)
        began_ns = self._clock.now_ns()
        report = await self._arm.ask_async(ArmEstop(cause), ARM_ANSWER_S)
        while report.estop_verified is not True and self._clock.now_ns() - began_ns < nanoseconds(STOP_READ_BACK_S):
            await asyncio.sleep(LOOK_S)
            report = await self._arm.ask_async(ArmQuery(), ARM_ANSWER_S)
        with contextlib.suppress(AgentError):  # it follows the arm anyway; this only makes it sooner
            await self._daemon.call("estop", {"cause": cause}, DAEMON_TOLD_S)
        if report.estop_verified is not True:
            raise DeviceFault(f"The stop was sent, but the servos did not confirm it: {report.reason}.", POWER_OFF)
        return {"verified": True, "reason": report.reason}

    async def listen(self) -> None:
        """Keep the newest tick and report of the arm, for ever."""
        decoder = msgspec.msgpack.Decoder(Tick | ArmReport)
        with contextlib.closing(AsyncSubscriber(self._paths.arm_pub)) as subscriber:
            while True:
                try:
                    message = decoder.decode((await subscriber.receive())[0])
                except msgspec.DecodeError as error:
                    logger.warning("the arm published something unknown", problem=str(error))
                    continue
                if isinstance(message, Tick):
                    self._tick = message
                else:
                    self._report = message

    def telemetry(self) -> Telemetry | None:
        tick, report = self._tick, self._report
        if tick is None or self._clock.now_ns() - tick.due_ns > nanoseconds(STALE_S):
            return None
        loop = report.loop if report else None
        execution = report.execution if report and tick.generation else None
        servos = report.servos if report else ()
        voltages = [servo.voltage_v for servo in servos if servo.voltage_v is not None]
        return Telemetry(
            at=stamp(self._clock.wall_s()),
            drive=tick.drive,
            measured=tick.measured,
            sent=tick.sent,
            rate_hz=loop.rate_hz if loop else None,
            period_error_p99_ms=loop.period_error_p99_ms if loop else None,
            temperature_c={servo.name: servo.temperature_c for servo in servos if servo.temperature_c is not None},
            load_pct={servo.name: servo.load_pct for servo in servos if servo.load_pct is not None},
            voltage_v=min(voltages, default=None),
            queue_depth=execution.depth if execution else None,
            starved=execution.starved if execution else False,
        )
