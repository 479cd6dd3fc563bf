"""Children that are forked, so that they need not import lerobot again."""

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable

import pytest


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a child; returns its pid."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        # Python warns of forking with threads; the children touch none of the parent's locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - the edge of a process: printed, then it ends
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended(pid: int, within_s: float = 10) -> int:
    """Exit status of a child, -N for signal N. Fails the test when it does not end in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail(f"process {pid} did not end within {within_s} s")
