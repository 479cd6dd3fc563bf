"""Who waits for whom when the processor is wanted by many.

Niceness alone is not enough: a kernel with autogroups (CONFIG_SCHED_AUTOGROUP, as desktops and Debian have it) shares
the processor among sessions first, and compares niceness only inside of one. Our processes lead sessions of their own,
so what a process says about itself has to be said about its session, too. Under systemd autogroups do not count.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

NICEST: Final = 19
EASY_PREY: Final = "1000"
AUTOGROUP: Final = Path("/proc/self/autogroup")


def yield_to_others(niceness: int) -> None:
    """Take less of the processor than others where it is scarce. 0 to 19; never raises: it only helps the others."""
    with contextlib.suppress(OSError):  # already that nice
        os.nice(niceness)
    if os.getsid(0) != os.getpid():
        return  # the session is somebody else's, such as a person's terminal
    with contextlib.suppress(OSError):  # a kernel without autogroups, or one that was written to a moment ago
        AUTOGROUP.write_text(str(niceness))


def step_back() -> None:
    """Only time that nobody else wants, and first to go when memory runs out. Children and later threads inherit it."""
    yield_to_others(NICEST)
    with contextlib.suppress(OSError):  # a kernel or container that knows no idle class
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(EASY_PREY)
