"""The work folder of one training: what lies in it, and who may use it."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.errors import Refused

PLAN: Final = "plan.json"
SUMMARY: Final = "summary.json"  # only when it has become a bundle
LOG: Final = "training.log"  # what lerobot and torch print
LOCK: Final = "lock"
CHECKPOINTS: Final = "checkpoints"
BASE: Final = "base"  # the policy with the statistics of the dataset
RESULT: Final = "result"  # what becomes a bundle
CACHE: Final = "cache"  # of the tables of the dataset


def newest_checkpoint(work: Path) -> Path | None:
    """The last one that is whole."""
    found = [path for path in (work / CHECKPOINTS).glob("[0-9]*") if path.name.isdigit()]
    return max(found, key=lambda path: int(path.name), default=None)


@contextlib.contextmanager
def alone(work: Path) -> Iterator[None]:
    """Raises Refused while another process has the folder."""
    with (work / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(f"{work.name} is being trained already.", "Wait for it, or stop it with Ctrl-C.") from error
        yield
