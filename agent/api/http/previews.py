"""The newest small picture of every camera that somebody looks at."""

import asyncio
import contextlib
import json
import struct
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import msgspec

from agent.clock import NS_PER_MS, Clock, nanoseconds
from agent.config import Http, StationConfig
from agent.messages import FrameHeader
from agent.telemetry import logger

LENGTHS: Final = struct.Struct(">II")
"""Of header and picture; `agent.api.http.encoder` writes them. It is not imported: OpenCV would come with it."""

LINGER_S: Final = 3.0
"""A page asks again within a second; one that does not is gone, and its cameras are left alone."""

KEEP_S: Final = 60.0
"""The idle program costs 40 MB, to start it again costs a second of a core."""

RETRY_S: Final = 1.0

PATIENCE_S: Final = 2.0
"""How long a request waits for a picture, before it is answered that there is none."""


@dataclass(frozen=True)
class Picture:
    jpeg: bytes
    seq: int  # of the camera's frames; gaps are frames that nobody looked at
    capture_ns: int
    clock: Clock

    @property
    def age_ms(self) -> float:
        return (self.clock.now_ns() - self.capture_ns) / NS_PER_MS


class Previews:
    """Starts the encoder when somebody looks, and ends it when nobody does."""

    def __init__(self, config: StationConfig, settings: Http, clock: Clock) -> None:
        self._clock = clock
        self._orders = {
            "cameras": {name: str(config.paths.camera_pub(name)) for name in config.cameras},
            "fps": settings.preview_fps,
            "width": settings.preview_width,
        }
        self._newest: dict[str, Picture] = {}
        self._wanted_ns: dict[str, int] = {}
        self._wanted = asyncio.Event()
        self._came = asyncio.Condition()
        self.process: Process | None = None

    async def after(self, camera: str, capture_ns: int) -> Picture | None:
        """A picture taken after `capture_ns`, as soon as there is one; None when none came in time."""
        self._wanted_ns[camera] = self._clock.now_ns()
        self._wanted.set()

        def there() -> bool:
            picture = self._newest.get(camera)
            return picture is not None and picture.capture_ns > capture_ns

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S), self._came:
                await self._came.wait_for(there)
                return self._newest[camera]
        return None

    async def stream(self, camera: str) -> AsyncIterator[Picture]:
        """One after the other, for ever. A camera that delivers nothing is waited for."""
        last_ns = 0
        while True:
            if picture := await self.after(camera, last_ns):
                last_ns = picture.capture_ns
                yield picture

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._wanted.wait()
            await self._look()
            if self._wanted.is_set():
                await asyncio.sleep(RETRY_S)

    async def _look(self) -> None:
        """Run one encoder until nobody looks, or it ends."""
        process = self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agent.api.http.encoder",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(process), name="previews")
                await self._steer(process, reading)
                reading.cancel()
        finally:
            assert process.stdin is not None  # noqa: S101 - asked for above
            process.stdin.close()
            if process.returncode is None:
                process.terminate()
            await process.wait()
            self.process = None
            self._newest.clear()

    async def _steer(self, process: Process, reading: asyncio.Task[None]) -> None:
        """Tell the encoder whom to watch, until nobody looks."""
        assert process.stdin is not None  # noqa: S101 - asked for at its start
        told: set[str] | None = None
        process.stdin.write(json.dumps(self._orders).encode() + b"\n")
        while not reading.done():
            oldest_ns = self._clock.now_ns() - nanoseconds(LINGER_S)
            wanted = {name for name, at_ns in self._wanted_ns.items() if at_ns > oldest_ns}
            if not wanted and max(self._wanted_ns.values()) < self._clock.now_ns() - nanoseconds(KEEP_S):
                self._wanted.clear()
                return
            if wanted != told:
                told = wanted
                self._newest = {name: picture for name, picture in self._newest.items() if name in wanted}
                process.stdin.write(json.dumps({"watch": sorted(wanted)}).encode() + b"\n")
            await asyncio.wait([reading], timeout=LINGER_S / 10)
        logger.warning("the program that makes previews ended", status=process.returncode)

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None  # noqa: S101 - asked for at its start
        with contextlib.suppress(asyncio.IncompleteReadError):  # it ended
            while True:
                head, body = LENGTHS.unpack(await process.stdout.readexactly(LENGTHS.size))
                header = msgspec.msgpack.decode(await process.stdout.readexactly(head), type=FrameHeader)
                jpeg = await process.stdout.readexactly(body)
                self._newest[header.camera] = Picture(jpeg, header.seq, header.capture_ns, self._clock)
                async with self._came:
                    self._came.notify_all()
