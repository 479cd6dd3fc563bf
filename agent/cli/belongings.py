"""Root's work on a station of another account: what it makes there has to be that account's, or a service could neither
read nor change it.
"""

import contextlib
import os
import stat
from pathlib import Path


def give_back(folder: Path) -> None:
    """Let the owner of `folder` own what root owns below it. Nothing for other accounts, and in root's own folders.

    Links stay as they are, and so do files with a second name: they may be somebody else's.
    """
    if os.geteuid() != 0 or not folder.is_dir() or (owner := folder.stat()).st_uid == 0:
        return
    for _, folders, files, here in os.fwalk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):  # a link, a socket, or gone meanwhile
                found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
                try:
                    _give(found, owner)
                finally:
                    os.close(found)


def _give(found: int, owner: os.stat_result) -> None:
    about = os.fstat(found)
    only_here = stat.S_ISDIR(about.st_mode) or (stat.S_ISREG(about.st_mode) and about.st_nlink == 1)
    if about.st_uid == 0 and only_here:
        os.fchown(found, owner.st_uid, owner.st_gid)
