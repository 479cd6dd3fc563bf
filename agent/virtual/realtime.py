"""Hardware does not slow down when the host is busy; where permitted, what stands for it does not either."""

import os
from typing import Final

PRIORITY: Final = 20
"""Above the agent's control thread (10): while that waits for a reply in a busy loop, the servo must still answer."""

NICENESS: Final = -10
"""Of the cameras. Drawing takes milliseconds at a time: under SCHED_FIFO it would hold up the agent's control loop."""


def run_like_hardware() -> bool:
    """Put the calling thread under SCHED_FIFO. False where the host does not permit it; things then only get later."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except PermissionError:
        return False
    return True


def draw_like_hardware() -> bool:
    """Let this process go before ordinary programs. False where the host does not permit it."""
    try:
        os.nice(NICENESS)
    except PermissionError:
        return False
    return True
