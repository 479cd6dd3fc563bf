"""Waiting for something to become true, with a deadline instead of luck."""

import time
from collections.abc import Callable

POLL_S = 0.002


def until(condition: Callable[[], object], what: str, deadline_s: float = 5.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(POLL_S)
