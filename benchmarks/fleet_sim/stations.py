"""Many stations in one process: the agent's own MQTT code, before stations that are only numbers.

    python -m benchmarks.fleet_sim.stations FOLDER PORT FIRST HZ [--plain]

Reads from stdin: `up N`, so many stations are to be there; `rate HZ`, all go away, and those that come publish
telemetry so often.
"""

import argparse
import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

from agent.api.local import Progress
from agent.api.mqtt.commands import Gate
from agent.api.mqtt.messages import Telemetry, stamp
from agent.api.mqtt.process import handle_stray
from agent.api.mqtt.seen import Seen
from agent.api.mqtt.surface import Surface
from agent.api.mqtt.timekeeping import Timekeeping
from agent.clock import Clock, SystemClock
from agent.config import Logging, Mqtt
from agent.errors import Refused
from agent.messages import JOINTS
from agent.telemetry import configure

CHANGE_EVERY_S: Final = 10.0
"""A station changes its mode, and says so in an event and a state: a busy one does it three times a minute."""

ANSWER_S: Final = 0.005
"""What a real daemon takes for a request that asks the arm."""

MODES: Final = ("idle", "aligning", "teleop", "hold", "homing")


class Simulated:
    """A station that is only numbers. `agent.api.mqtt.link.Link`."""

    def __init__(self, name: str, clock: Clock, chance: random.Random) -> None:
        self._name = name
        self._clock = clock
        self._chance = chance
        self._mode = 0
        self._seq = 0

    async def call(
        self, verb: str, args: dict[str, Any], timeout_s: float, on_progress: Progress | None = None
    ) -> dict[str, Any]:
        if verb == "status":
            return self._status()
        await asyncio.sleep(ANSWER_S)
        return {"mode": MODES[self._mode], "reason": "simulated"}

    async def events(self, since: int) -> AsyncGenerator[dict[str, Any]]:
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / CHANGE_EVERY_S))
            self._mode = (self._mode + 1) % len(MODES)
            self._seq += 1
            text = f"{MODES[self._mode].capitalize()}: simulated."
            at = stamp(self._clock.wall_s())
            yield {"event": {"seq": self._seq, "at": at, "kind": "mode", "text": text, "data": {}}}

    async def estop(self, cause: str) -> dict[str, Any]:
        raise Refused("There is no arm here.")

    def telemetry(self) -> Telemetry:
        joints = (0.0, *(round(self._chance.uniform(-90, 90), 2) for _ in JOINTS[1:]))
        each = dict.fromkeys(JOINTS, 31.0)
        return Telemetry(
            at=stamp(self._clock.wall_s()),
            drive="follow",
            measured=joints,  # type: ignore[arg-type]
            sent=joints,  # type: ignore[arg-type]
            rate_hz=30.0,
            period_error_p99_ms=0.4,
            temperature_c=each,
            load_pct=each,
            voltage_v=5.0,
        )

    def _status(self) -> dict[str, Any]:
        servo = {"id": 1, "status_bits": 0, "temperature_c": 31.0, "voltage_v": 5.0, "load_pct": 3.0, "torque_on": True}
        nothing = ("lease", "recording", "task", "last_task", "arm", "recorder", "policy", "federation")
        return dict.fromkeys(nothing) | {
            "station": self._name, "version": "0.1.0", "config_hash": "0" * 12, "uptime_s": 1.0, "children": {},
            "mode": MODES[self._mode], "reason": "simulated",
            "servos": {joint: servo | {"alarms": []} for joint in JOINTS},
            "cameras": {
                name: {"state": "streaming", "reason": "", "age_ms": 12.0} for name in ("top", "wrist")
            },
        }  # fmt: skip


class Fleet:
    """The stations of this process."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        self._clock = SystemClock()
        self._keeping = Timekeeping(trusted=True)
        self._keeping.look()
        self._hz = asked.hz
        self._running: list[asyncio.Task[None]] = []

    async def serve(self) -> None:
        """Until stdin ends."""
        asyncio.get_running_loop().set_exception_handler(handle_stray)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := (await reader.readline()).split():
            match line:
                case [b"up", count]:
                    self._up(int(count))
                case [b"rate", hz]:
                    self._hz = float(hz)
                    await self._down()
        await self._down()

    def _up(self, count: int) -> None:
        for number in range(len(self._running), count):
            name = f"s{self._asked.first + number:05}"
            self._running.append(asyncio.create_task(self._surface(name).run(), name=name))

    async def _down(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()

    def _surface(self, name: str) -> Surface:
        folder: Path = self._asked.folder
        tls = {
            "ca": folder / "tls" / "ca.crt",
            "cert": folder / "tls" / f"{name}.crt",
            "key": folder / "tls" / f"{name}.key",
        }
        settings = Mqtt.model_validate(
            {
                "host": "localhost",
                "port": self._asked.port,
                "telemetry_hz": self._hz,
                "tls": None if self._asked.plain else tls,
            }
        )
        # In memory: a thousand stations have a thousand disks, and here there is one.
        seen = Seen(folder / "seen" / name)
        link = Simulated(name, self._clock, random.Random(name))
        return Surface(name, settings, link, Gate(self._clock, self._keeping, seen), self._clock)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("first", type=int)
    parser.add_argument("hz", type=float)
    parser.add_argument("--plain", action="store_true")
    # A thousand lines at every reconnect would be measured, too.
    configure(Logging(level="error", format="json"), process="stations")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Fleet(parser.parse_args()).serve())


if __name__ == "__main__":
    main()
