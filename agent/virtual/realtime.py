"""Hardware does not slow down when the host is busy; where permitted, what stands for it does not either."""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import Final

PRIORITY: Final = 20
"""Above the agent's control thread (10): while that waits for a reply in a busy loop, the servo must still answer."""

NICENESS: Final = -10
"""Of the cameras. Drawing takes milliseconds at a time: under SCHED_FIFO it would hold up the agent's control loop."""

SWITCH_S: Final = 0.0001
"""A bus thread must not wait Python's usual 5 ms for the interpreter lock."""


def run_like_hardware() -> bool:
    """Put the calling thread under SCHED_FIFO. False where the host does not permit it; things then only get later.

    For every thread of the station, those that answer requests included: one of ordinary priority that waits for a
    core while it holds the interpreter's lock, or a bus's, keeps all servos silent for as long.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except PermissionError:
        return False
    return True


@contextlib.contextmanager
def as_a_program() -> Iterator[None]:
    """What is started in here does not inherit the calling thread's SCHED_FIFO."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def keep_answering() -> None:
    """Call this when everything stands. A full collection of garbage stops all threads at once; with what the imports
    left behind it takes 45 ms, three times what an agent waits for a reply. From now on it looks only at what is new.
    """
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()


def draw_like_hardware() -> bool:
    """Let this process go before ordinary programs. False where the host does not permit it."""
    try:
        os.nice(NICENESS)
    except PermissionError:
        return False
    return True
