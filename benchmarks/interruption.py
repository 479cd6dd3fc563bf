"""Ctrl-C, SIGTERM and `timeout` end a benchmark in order, with all that it started."""

import signal
from types import FrameType
from typing import Final, NoReturn

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def ends_in_order() -> None:
    """From now on the first of them raises KeyboardInterrupt, and what comes after it is ignored: `timeout` sends its
    signal twice, to the process and to its group."""
    for number in SIGNALS:
        signal.signal(number, _interrupted)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
