"""A process that does a trainer's imports once, and forks trainers: `python -m agent.fl.warm SOCKET`.

torch, lerobot and Flower take a small computer ten seconds and more to import, for every message of every round. This
one is started after the first message of a run, and makes the trainers of those that follow. It is our own forty lines
for the same reasons as agent/nursery.py, and with what a trainer needs: what is called `flwr-clientapp` hands over its
arguments, its environment and its output, and what is forked becomes it.

    -> {"argv": [...], "env": {...}}      with standard output and error; may wait until the imports are done
    <- one byte when it was forked
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

MODULES: Final = (
    "flwr.supernode.cli",
    "flwr.supernode.runtime.run_clientapp",
    "agent.fl.client_app",
    "agent.fl.trainer",
)
MAX_REQUEST_BYTES: Final = 64 * 1024

ANSWER_S: Final = 15.0
"""A SuperNode that hears nothing of a trainer for 30 s starts another; one that imports by itself is heard."""

LOOK_S: Final = 0.2


def hand_over(path: str, stop: Callable[[], bool]) -> bool:
    """Let a forked process be what this one was started for. False: there is none, or `stop` said so meanwhile."""
    began_s = time.monotonic()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        request = json.dumps({"argv": sys.argv, "env": dict(os.environ)}).encode()
        try:
            peer.connect(path)
            socket.send_fds(peer, [request], [sys.stdout.fileno(), sys.stderr.fileno()])
            while not stop() and time.monotonic() - began_s < ANSWER_S:
                if select.select([peer], [], [], LOOK_S)[0]:
                    return bool(peer.recv(1))
        except OSError:
            return False
        return False


def main() -> None:
    path = Path(sys.argv[1])
    # Arrow and torch keep idle worker threads; both are made for forked children, which use none of the parent's.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here asks how a trainer ended; the SuperNode knows
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(4)  # before the imports: a trainer may wait for the rest of them instead of doing them, too
        for module in MODULES:
            importlib.import_module(module)
        gc.collect()
        gc.freeze()
        while True:
            peer, _ = listener.accept()
            with peer:
                _serve(listener, peer)


def _serve(listener: socket.socket, peer: socket.socket) -> None:
    packet, fds, _, _ = socket.recv_fds(peer, MAX_REQUEST_BYTES, 2)
    if len(fds) == 2 and not _hung_up(peer):
        if os.fork() == 0:
            _become(listener, peer, packet, fds)
        with contextlib.suppress(OSError):
            peer.send(b".")
    for fd in fds:
        os.close(fd)


def _hung_up(peer: socket.socket) -> bool:
    """Whoever asked has given up waiting, and does it itself."""
    try:
        return peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _become(listener: socket.socket, peer: socket.socket, packet: bytes, fds: list[int]) -> None:
    """In the child. Does not return."""
    status = 1
    try:
        from agent.fl import runner

        request = json.loads(packet)
        listener.close()
        peer.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd, standard in zip(fds, (1, 2), strict=True):
            os.dup2(fd, standard)
        os.environ.clear()
        os.environ.update(request["env"])
        sys.argv = request["argv"]
        runner.run(runner.Answer(runner.rules(), Path(sys.argv[0]).name))
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - the edge of a process: whatever happened is printed, then it ends
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
