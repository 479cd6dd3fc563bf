"""A servo bus on a pseudo-terminal behind a stable name, as a USB adapter behind /dev/serial/by-id."""

import contextlib
import os
import pty
import select
import threading
import time
import tty
from pathlib import Path
from typing import Final

from agent.virtual.bus import Reply, ServoBus
from agent.virtual.realtime import run_like_hardware

READ_BYTES: Final = 4096
JOIN_S: Final = 2.0  # the thread only ever waits in select, which `unplug` wakes


class PtyPort:
    """Serves one bus on a pty; `link` points at it while it is plugged in.

    The slave side is held open here, so that a client may close, die and come back as with a real adapter.
    Replies that nobody reads are dropped once the terminal's buffer is full.
    """

    def __init__(self, bus: ServoBus, link: Path) -> None:
        self._bus = bus
        self._link = link
        self._thread: threading.Thread | None = None
        self._fds: tuple[int, int, int, int] = (-1, -1, -1, -1)  # master, slave, wake read end, wake write end

    @property
    def plugged(self) -> bool:
        return self._thread is not None

    def replug(self) -> None:
        """Make the device appear. Does nothing when it is there."""
        if self._thread is not None:
            return
        master, slave = pty.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        self._fds = (master, slave, *os.pipe())
        self._thread = threading.Thread(target=self._serve, name=f"bus {self._link.name}", daemon=True)
        self._thread.start()
        self._link.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._link.with_name(f".{self._link.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.ttyname(slave))
        fresh.replace(self._link)

    def unplug(self) -> None:
        """Pull the cable: the name disappears and a client's open file gets EIO. Does nothing when unplugged."""
        if self._thread is None:
            return
        self._link.unlink(missing_ok=True)
        os.write(self._fds[3], b"x")
        self._thread.join(JOIN_S)
        self._thread = None
        for fd in self._fds:
            os.close(fd)

    def _serve(self) -> None:
        run_like_hardware()
        master, _, wake, _ = self._fds
        waiting: list[tuple[float, bytes]] = []
        while True:
            timeout_s = None if not waiting else max(0.0, waiting[0][0] - time.monotonic())
            ready, _, _ = select.select([master, wake], [], [], timeout_s)  # poll() would round up to 1 ms
            if wake in ready:
                return
            if ready:
                now = time.monotonic()
                replies = self._bus.feed(os.read(master, READ_BYTES))
                if not waiting and all(reply.delay_s == 0 for reply in replies):
                    self._send(b"".join(reply.data for reply in replies))
                    continue
                waiting = _merge(waiting, now, replies)
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                self._send(waiting.pop(0)[1])

    def _send(self, data: bytes) -> None:
        if data:
            with contextlib.suppress(BlockingIOError):  # nobody reads: lost, as on a wire
                os.write(self._fds[0], data)


def _merge(waiting: list[tuple[float, bytes]], now: float, replies: list[Reply]) -> list[tuple[float, bytes]]:
    """Replies in the order in which they are due; equal times keep their order."""
    return sorted([*waiting, *((now + reply.delay_s, reply.data) for reply in replies)], key=lambda item: item[0])
