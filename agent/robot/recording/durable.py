"""Changes to files that are on the disk when the call returns, and that a kill can only cut between, never within.

Every change goes through one `Disk`, whose `on_step` is called before each system call: the tests kill a commit
at every one of them.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.errors import BadInput, Refused


def _nothing(step: str) -> None:
    pass


class Disk:
    """The few file operations that a durable commit is made of."""

    def __init__(self, on_step: Callable[[str], None] = _nothing) -> None:
        self._on_step = on_step

    def make_folder(self, folder: Path) -> None:
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        for parent in reversed(missing):
            self._on_step(f"mkdir {parent.name}")
            parent.mkdir(exist_ok=True)
            self.sync_folder(parent.parent)

    def write(self, path: Path, data: bytes) -> None:
        """A new file with `data`, on the disk; its name becomes durable with the folder."""
        self._on_step(f"write {path.name}")
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            self._on_step(f"fsync {path.name}")
            os.fsync(file.fileno())

    def sync(self, path: Path) -> None:
        self._on_step(f"fsync {path.name}")
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_folder(self, folder: Path) -> None:
        self.sync(folder)

    def link(self, source: Path, target: Path) -> None:
        """A second name for `source`; a copy where that is impossible (another file system, or no hard links)."""
        self._on_step(f"link {target.name}")
        try:
            target.hardlink_to(source)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            shutil.copyfile(source, target)
        self.sync(target)

    def rename(self, source: Path, target: Path) -> None:
        """Atomic. Not durable before its folder is synced."""
        self._on_step(f"rename {target.name}")
        source.replace(target)

    def replace(self, path: Path, data: bytes) -> None:
        """`path` holds either its old content or `data`, whenever the process or the power dies."""
        temporary = path.with_name(f".{path.name}.new")
        self.write(temporary, data)
        self.rename(temporary, path)
        self.sync_folder(path.parent)

    def remove_folder(self, folder: Path) -> None:
        """Gone for readers at once: a half-deleted folder is one whose name begins with `.gone-`."""
        if not folder.exists():
            return
        gone = folder.with_name(f".gone-{folder.name.lstrip('.')}")
        self.rename(folder, gone)
        self.sync_folder(gone.parent)
        self._on_step(f"remove {gone.name}")
        shutil.rmtree(gone)


def as_json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


class Lock:
    """An exclusive lock that the kernel frees when its process dies. The file names the holder."""

    def __init__(self, path: Path, what: str) -> None:
        """Raises Refused naming the holder, or BadInput when the folder cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+", encoding="ascii")
        except OSError as error:
            raise cannot_write(path.parent, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise Refused(
                f"{what} in {path.parent} is in use by process {holder}.",
                "Stop that process first, or use another state_dir.",
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def cannot_write(folder: Path, error: OSError) -> BadInput:
    """The sentence for a folder that is read-only, full or not a folder. The error's own file name is more exact."""
    return BadInput(
        f"Cannot write to {error.filename or folder}: {os.strerror(error.errno) if error.errno else error}.",
        "Make the folder writable for this user, free disk space, or set another state_dir.",
    )
