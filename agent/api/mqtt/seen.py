"""Which commands were taken already, on the disk before they are carried out: none runs twice, also across a crash.

One JSON object a line, appended and fsynced. An id may be forgotten once its command has expired, and the largest
expiry that was ever forgotten is kept as the *floor*: what expires no later than that is refused whatever the clock
says, so that a clock that was set back makes nothing valid again.

    {"floor": 1795000000.0}
    {"id": "3f6c...", "until": 1795000300.0}
"""

import contextlib
import errno
import json
import math
import os
from pathlib import Path
from typing import Final

MAX_IDS: Final = 4096
"""Fourteen commands a second for the five minutes that one may live; some 300 kB in memory."""

REWRITE_LINES: Final = 2 * MAX_IDS
"""The file is written anew when it has more lines than this."""


class Full(Exception):
    """More unexpired commands than can be remembered."""


class Seen:
    """The ids of one station's commands. `check` and `note` are quick; `keep` waits for the disk."""

    def __init__(self, path: Path) -> None:
        """With a file that cannot be read nothing is known about repeats: every `keep` then raises OSError."""
        self._path = path
        self._until: dict[str, float] = {}
        self.floor = 0.0
        self._lines = 0
        self._file: int | None = None
        self._problem: OSError | None = None
        try:
            self._load()
        except OSError as error:
            self._problem = error

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, command: str) -> bool:
        return command in self._until

    def _load(self) -> None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        for line in data.splitlines():
            with contextlib.suppress(
                ValueError, RecursionError
            ):  # the last line of a crash: its command was not carried out
                match json.loads(line):
                    case {"floor": float(floor)} if math.isfinite(floor):
                        self.floor = max(self.floor, floor)
                    case {"id": str(command), "until": float(until)} if math.isfinite(until):
                        self._until[command] = until
        self._lines = REWRITE_LINES  # so that the first `keep` writes a clean file

    def note(self, command: str, until: float, now: float) -> None:
        """Take `command`, which expires at `until` (seconds since the epoch). Raises Full."""
        if len(self._until) >= MAX_IDS:
            self._forget(now)
        if len(self._until) >= MAX_IDS:
            raise Full
        self._until[command] = until

    def _forget(self, now: float) -> None:
        over = [(command, until) for command, until in self._until.items() if until < now]
        for command, until in over:
            del self._until[command]
            self.floor = max(self.floor, until)

    def keep(self, command: str) -> None:
        """Have `command` on the disk when this returns. Raises OSError. Not for two threads at once."""
        if self._problem:
            raise self._problem
        until = self._until.get(command)
        if until is None:
            return  # noted, expired and forgotten meanwhile: the floor knows it
        lines, self._lines = self._lines, REWRITE_LINES  # until this has worked: half a line would spoil the next one
        if lines >= REWRITE_LINES or self._file is None:
            self._rewrite()
        else:
            _write(self._file, _line({"id": command, "until": until}))
            self._lines = lines + 1

    def _rewrite(self) -> None:
        """A file with what is known now, in the place of the old one or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_name(f".{self._path.name}.new")
        # Other commands may be noted and forgotten meanwhile, by the event loop: ids first, then the floor.
        known = list(self._until.items())
        data = _line({"floor": self.floor}) + b"".join(_line({"id": one, "until": until}) for one, until in known)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, data)
            new.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError:
            os.close(fd)
            raise
        self.close()
        self._file, self._lines = fd, 1 + len(known)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _write(fd: int, data: bytes) -> None:
    if os.write(fd, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(fd)


def _line(value: dict[str, float | str]) -> bytes:
    return json.dumps(value).encode() + b"\n"
