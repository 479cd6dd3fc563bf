"""A process that has the heavy imports done and forks children that need them.

lerobot imports torch: 4 s and 500 MB. A child that is forked from here starts in milliseconds and shares
those pages, which is what lets a dead arm process be back under control within 1.5 s. It is our own
forty lines and not `multiprocessing.forkserver`, because that one sends pickles, and because here the
nursery is the parent that reaps: an exit is reported with its real status at once.

Run by the supervisor as `python -m agent.nursery FD MODULE...`. Speaks JSON over a SEQPACKET socket:

    -> {"op": "spawn", "name": "arm", "entry": "agent.robot.arm:main", "config": {...}, "kwargs": {},
        "orphan_stays": true}
    <- {"event": "ready"}                        the imports are done
    <- {"event": "spawned", "name": "arm", "pid": 12}
    <- {"event": "exit", "pid": 12, "status": -9}
    -> {"op": "branch", "name": "recorder", "modules": [...]}     with a socket: a further nursery on that socket,
                                                 which has these imports too and shares the pages of the first ones

When the supervisor goes away the nursery exits; its children stay (an arm must be held, not dropped) and
notice the missing heartbeat themselves.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
import warnings
from typing import Any

MAX_REQUEST_BYTES = 64 * 1024


def main(argv: list[str]) -> None:
    # Arrow and torch keep idle worker threads; both are made for forked children, which use none of the parent's.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    _grow(socket.socket(fileno=int(argv[1])), argv[2:])


def _grow(peer: socket.socket, modules: list[str]) -> None:
    """Import, then serve `peer` until it hangs up."""
    for module in modules:
        importlib.import_module(module)
    # Objects made by the imports never die; keeping the collector off them keeps their pages shared.
    gc.collect()
    gc.freeze()
    with contextlib.suppress(BrokenPipeError):  # the supervisor left while we were importing
        _serve(peer)


def _serve(peer: socket.socket) -> None:
    wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_w)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Ctrl-C on a terminal and a stop by systemd reach the whole group, but are the supervisor's to handle: a
    # nursery that left at once could not tell it how its children ended.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _send(peer, {"event": "ready"})
    with selectors.DefaultSelector() as selector:
        selector.register(peer, selectors.EVENT_READ)
        selector.register(wake_r, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is peer:
                    packet, fds, _, _ = socket.recv_fds(peer, MAX_REQUEST_BYTES, 1)
                    if not packet:
                        return
                    _fork(peer, json.loads(packet), (wake_r, wake_w), fds)
                else:
                    os.read(wake_r, 4096)
            _reap(peer)


def _fork(peer: socket.socket, request: dict[str, Any], inherited: tuple[int, int], fds: list[int]) -> None:
    pid = os.fork()
    if pid:
        for fd in fds:
            os.close(fd)
        _send(peer, {"event": "spawned", "name": request["name"], "pid": pid})
        return
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        peer.close()
        for fd in inherited:
            os.close(fd)
        # A session of its own: Ctrl-C on the agent's terminal must not reach the arm before the agent
        # has parked it.
        os.setsid()
        if request["op"] == "branch":
            _grow(socket.socket(fileno=fds[0]), request["modules"])
        else:
            if not request["orphan_stays"]:
                _end_with_parent()
            run_child(request)
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - the edge of a process: whatever happened is printed, then it ends
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _end_with_parent() -> None:
    """SIGTERM when the nursery is gone. Only the arm outlives it: a held arm must not be let go."""
    PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:  # it went away before the call above
        os.kill(os.getpid(), signal.SIGTERM)


def run_child(request: dict[str, Any]) -> None:
    """Become the child that `request` describes; returns when its entry point returns."""
    from agent.config import StationConfig
    from agent.telemetry import configure

    config = StationConfig.model_validate(request["config"])
    configure(config.logging, process=request["name"])
    module, _, function = request["entry"].partition(":")
    getattr(importlib.import_module(module), function)(config, **request["kwargs"])


def _reap(peer: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _send(peer, {"event": "exit", "pid": pid, "status": os.waitstatus_to_exitcode(status)})


def _send(peer: socket.socket, event: dict[str, Any]) -> None:
    peer.send(json.dumps(event).encode())


if __name__ == "__main__":
    main(sys.argv)
