"""The way from this process to the station: the daemon's socket, the arm's publisher, and the arm's own stop."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Final, Protocol

import msgspec

from agent.api.local import AsyncClient, Progress
from agent.api.mqtt.messages import Telemetry, stamp
from agent.api.stop import stop
from agent.clock import Clock, nanoseconds
from agent.messages import ArmReport, Tick
from agent.paths import Paths
from agent.telemetry import logger
from agent.transport import AsyncSubscriber

VIA: Final = "mqtt"

STALE_S: Final = 2.0
"""The arm publishes ten ticks a second at least; older than this is not what the arm does now."""


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
        self._tick: Tick | None = None
        self._report: ArmReport | None = None
        self.events = self._daemon.events
        self.stay_alive = self._daemon.stay_alive

    async def call(
        self, verb: str, args: dict[str, Any], timeout_s: float, on_progress: Progress | None = None
    ) -> dict[str, Any]:
        return await self._daemon.call(verb, args, timeout_s, on_progress)

    async def estop(self, cause: str) -> dict[str, Any]:
        return await stop(self._paths, self._daemon, self._clock, cause)

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
