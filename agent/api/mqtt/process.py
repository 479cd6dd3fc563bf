"""Entry point of the process that stands between the station and its broker.

A crash here, or a flood of messages, ends or slows this process and nothing else.
"""

import asyncio
import errno
import signal
from typing import Any

from agent.api.mqtt.commands import Gate
from agent.api.mqtt.home_assistant import announcement
from agent.api.mqtt.link import StationLink
from agent.api.mqtt.seen import Seen
from agent.api.mqtt.surface import Surface
from agent.api.mqtt.timekeeping import Timekeeping
from agent.clock import SystemClock
from agent.config import StationConfig
from agent.errors import BadInput
from agent.telemetry import logger

NAME = "mqtt"
"""Of this child in the supervisor."""


def main(config: StationConfig) -> None:
    """Runs until SIGTERM."""
    asyncio.run(_until_told(config))


async def _until_told(config: StationConfig) -> None:
    work = asyncio.create_task(_work(config), name="mqtt")
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, work.cancel)
    loop.set_exception_handler(handle_stray)
    try:
        await work
    except asyncio.CancelledError:
        return


def handle_stray(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For exceptions that reach nobody. One of them means nothing: when a connection breaks, aiomqtt may ask to watch a
    socket that paho closes in the same turn of the loop.
    """
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno == errno.EBADF:
        logger.debug("a socket was closed before it could be watched")
        return
    loop.default_exception_handler(context)


async def _work(config: StationConfig) -> None:
    if config.mqtt is None:
        raise BadInput("This station has no broker.", "Add mqtt to the configuration.")
    clock = SystemClock()
    timekeeping = Timekeeping(trusted=config.mqtt.trust_clock)
    link = StationLink(config.paths, clock)
    seen = Seen(config.paths.mqtt_seen)
    about = announcement(config) if config.mqtt.home_assistant else None
    surface = Surface(config.station, config.mqtt, link, Gate(clock, timekeeping, seen), clock, about)
    async with asyncio.TaskGroup() as group:
        group.create_task(timekeeping.keep(), name="timekeeping")
        group.create_task(link.listen(), name="arm reports")
        group.create_task(link.stay_alive(NAME), name="sign of life")
        group.create_task(surface.run(), name="broker")
