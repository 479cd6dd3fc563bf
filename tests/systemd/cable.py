"""A USB cable between this machine, where the arm is, and the machine under test, where its serial port is.

    python cable.py arm SOCKET TERMINAL      here: passes a connection's bytes on to the virtual arm's terminal
    python cable.py port SOCKET LINK GROUP   there: makes a terminal, calls it LINK, passes its bytes to the socket

The arm keeps its power while the other machine reboots, as arms do. Needs nothing but the standard library.
"""

import contextlib
import os
import select
import shutil
import socket
import sys
import tty
from pathlib import Path

READ_BYTES = 4096
PRIORITY = 20


def main() -> None:
    with contextlib.suppress(OSError):  # a wire is never late; where real time is not allowed it may be
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    end, path, *others = sys.argv[1:]
    if end == "arm":
        _arm(Path(path), Path(others[0]))
    else:
        _port(path, Path(others[0]), others[1])


def _arm(path: Path, terminal: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        path.unlink(missing_ok=True)
        server.bind(str(path))
        server.listen()
        while True:
            peer, _ = server.accept()
            arm = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
            tty.setraw(arm)
            with peer:
                _pass_on(peer.fileno(), arm)
            os.close(arm)


def _port(path: str, link: Path, group: str) -> None:
    with socket.socket(socket.AF_UNIX) as arm:
        arm.connect(path)
        terminal, other_end = os.openpty()  # the other end stays open, so that a program may close and return
        tty.setraw(other_end)
        name = os.ttyname(other_end)
        shutil.chown(name, "root", group)
        os.chmod(name, 0o660)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        _pass_on(arm.fileno(), terminal)
        link.unlink()


def _pass_on(one: int, other: int) -> None:
    """Both ways, until either hangs up. What nobody takes is lost, as on a wire."""
    for end in (one, other):
        os.set_blocking(end, False)
    while True:
        ready, _, _ = select.select([one, other], [], [])
        for end in ready:
            try:
                data = os.read(end, READ_BYTES)
            except OSError:
                return
            if not data:
                return
            with contextlib.suppress(BlockingIOError):
                os.write(other if end == one else one, data)


if __name__ == "__main__":
    main()
