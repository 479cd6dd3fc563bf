"""Hardware does not slow down when the host is busy; where permitted, the threads that stand for it do not either."""

import os
from typing import Final

PRIORITY: Final = 20
"""Above the agent's control thread (10): while that waits for a reply in a busy loop, the servo must still answer."""


def run_like_hardware() -> bool:
    """Put the calling thread under SCHED_FIFO. False where the host does not permit it; things then only get later."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except PermissionError:
        return False
    return True
