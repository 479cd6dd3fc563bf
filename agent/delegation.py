"""The service's own control group, where systemd has delegated it (Delegate=): the agent moves into a subgroup of it.

Below a group that holds processes no controllers can be given to subgroups, and federation wants one with limits of its
own. systemd 254 and later could do this by itself (DelegateSubgroup=); Debian 12 has 252.
"""

import os
from pathlib import Path
from typing import Final

from agent.telemetry import logger

SUBGROUP: Final = "agent"

FROM_SYSTEMD: Final = "INVOCATION_ID"
"""In the environment of every service. A person's session may be delegated too, and is nobody's to divide."""


def enter(mount: Path = Path("/sys/fs/cgroup"), processes: Path = Path("/proc/self/cgroup")) -> Path | None:
    """Move this process, which has no children yet, into the subgroup; None where nothing was delegated."""
    if FROM_SYSTEMD not in os.environ or (own := _own(processes)) is None:
        return None
    group = mount / own.lstrip("/")
    if not os.access(group, os.W_OK) or not os.access(group / "cgroup.procs", os.W_OK) or os.geteuid() == 0:
        return None
    subgroup = group / SUBGROUP
    try:
        subgroup.mkdir(exist_ok=True)
        (subgroup / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:  # works without, only federation is less tightly held
        logger.warning("the control group cannot be divided", reason=str(error))
        return None
    return subgroup


def _own(processes: Path) -> str | None:
    """Our place in the unified hierarchy."""
    try:
        lines = processes.read_text().splitlines()
    except OSError:
        return None
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
