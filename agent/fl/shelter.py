"""What a trainer may reach of the computer: Python, what it learns from, folders of its own, and no device.

Three fences, each where it can be had; `so-agent fl status` says which stand.

another user    where the agent is root: so-agent-fl if there is one, else nobody; in no group but its own
files           where the kernel has Landlock (Linux 5.13): it opens what is on a list and nothing else. No device but
                null, zero and random numbers is on it, no other dataset, no key. From Linux 6.7 on it reaches no port
                but its SuperNode's, over TCP; from 6.12 on it sends no signals to others
no new rights   set-user-id programs have no effect (agent.fl.launch)

What was given up does not come back. Landlock has no functions in the C library, hence the numbers:
https://docs.kernel.org/userspace-api/landlock.html
"""

import contextlib
import ctypes
import os
import pwd
import stat
import struct
import sys
from pathlib import Path
from typing import Final

import msgspec

from agent.fl import brief
from agent.fl.brief import Brief

USERS: Final = ("so-agent-fl", "nobody")
NOBODY: Final = 65534
"""Where no user has a name."""

SYSTEM: Final = (
    "/usr", "/lib", "/lib64", "/bin", "/opt", "/proc", "/sys", "/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types",
    "/etc/hosts", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/ssl/openssl.cnf", "/etc/ssl/certs",
    "/etc/ca-certificates", "/etc/pki/tls/certs", "/etc/alternatives",
)  # fmt: skip
HARMLESS: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

DEVICES: Final = Path("/dev")
ARMS_AND_CAMERAS: Final = ("ttyACM*", "ttyUSB*", "video*")

CREATE_RULESET: Final = 444
ADD_RULE: Final = 445
RESTRICT_SELF: Final = 446
"""System calls; the same numbers on every processor."""

VERSION_ONLY: Final = 1
PATH_BENEATH: Final = 1
NET_PORT: Final = 2

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << bit for bit in range(4))
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
READING: Final = EXECUTE | READ_FILE | READ_DIR

RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15}
RIGHTS_NOW: Final = 16
"""How many rights over files a version of Landlock knows: these, and all later ones as many as the fifth."""

NETWORK_SINCE: Final = 4
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
SCOPES_SINCE: Final = 6
SCOPE_SIGNAL: Final = 1 << 1

PR_SET_KEEPCAPS: Final = 8
PR_SET_NO_NEW_PRIVS: Final = 38
CAPABILITIES_V3: Final = 0x20080522
CAP_DAC_READ_SEARCH: Final = 1 << 2


class Found(msgspec.Struct, frozen=True):
    """What a look from inside has shown."""

    user: str
    landlock: int  # version; 0: none
    devices: tuple[str, ...]  # arms and cameras that can be opened
    problem: str = ""  # why no trainer can work here


class Fence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a trainer is given besides Python itself. Paths are absolute."""

    readable: tuple[str, ...]
    writable: tuple[str, ...]
    port: int | None = None  # of TCP, the only one that it may connect to; None: none
    uid: int | None = None  # None: as who we are
    gid: int | None = None


def user() -> tuple[int, int] | None:
    """The user and group that a trainer can be given here; None where the agent is not root."""
    if os.geteuid() != 0:
        return None
    for name in USERS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return found.pw_uid, found.pw_gid
    return NOBODY, NOBODY


def fence(found: Brief | None, port: int | None, uid: int | None, gid: int | None) -> Fence:
    """Of a trainer with this brief; without one it has nothing."""
    if found is None:
        return Fence((), (), port, uid, gid)
    readable = (*found.datasets, found.policies, str(Path(found.flag).parent))
    writable = [found.scratch, found.candidates, *([str(Path(found.ledger).parent)] if found.ledger else [])]
    return Fence(readable, tuple(writable), port, uid, gid)


def landlock() -> int:
    """The version that the kernel has; 0 when it has none."""
    return max(0, _call(CREATE_RULESET, None, 0, VERSION_ONLY))


def enter(fence: Fence) -> int:
    """This thread, and all that it starts, from now on: to be called before there are others.

    The version of Landlock that holds; 0 for none. Raises OSError.
    """
    version = landlock()
    ruleset = _ruleset(version, fence) if version else None
    if fence.uid is not None and fence.gid is not None:
        become(fence.uid, fence.gid, reading=ruleset is not None)
    if ruleset is None:
        return 0
    try:
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if _call(RESTRICT_SELF, ruleset, 0) != 0:
            raise _error("Landlock")
    finally:
        os.close(ruleset)
    return version


def become(uid: int, gid: int, *, reading: bool) -> None:
    """From root to another user, in no other group, for good. With `reading` it still reads whatever no fence forbids,
    whoever's it is: an environment or a station may lie in a folder that is closed to others. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    if reading:
        library.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresuid(uid, uid, uid)
    kept = CAP_DAC_READ_SEARCH if reading else 0
    header, sets = struct.pack("=Ii", CAPABILITIES_V3, 0), struct.pack("=6I", kept, kept, 0, 0, 0, 0)
    if library.capset(header, sets) != 0:
        raise _error("capset")


def python() -> list[str]:
    """Folders that this Python imports from, wherever it is installed."""
    source = Path(__file__).resolve().parents[2]
    found = {sys.prefix, sys.base_prefix, str(source), *filter(os.path.isabs, sys.path)}
    return sorted(found | {os.path.realpath(name) for name in found} - {"/"})


def _ruleset(version: int, fence: Fence) -> int:
    everything = (1 << RIGHTS.get(version, RIGHTS_NOW)) - 1
    network = BIND_TCP | CONNECT_TCP if version >= NETWORK_SINCE else 0
    signals = SCOPE_SIGNAL if version >= SCOPES_SINCE else 0
    size = 24 if version >= SCOPES_SINCE else 16 if version >= NETWORK_SINCE else 8
    ruleset = _call(CREATE_RULESET, struct.pack("QQQ", everything, network, signals), size, 0)
    if ruleset < 0:
        raise _error("Landlock")
    for name in (*SYSTEM, *python(), *fence.readable):
        _allow(ruleset, name, READING)
    for name in HARMLESS:
        _allow(ruleset, name, READ_FILE | WRITE_FILE)
    for name in fence.writable:
        _allow(ruleset, name, everything & ~IOCTL_DEV)
    rule = struct.pack("QQ", CONNECT_TCP, fence.port or 0)
    if network and fence.port and _call(ADD_RULE, ruleset, NET_PORT, rule, 0) != 0:
        raise _error(f"Landlock, port {fence.port}")
    return ruleset


def _allow(ruleset: int, name: str, rights: int) -> None:
    """What is not there needs no rule."""
    try:
        descriptor = os.open(name, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= OF_FILES
        if _call(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0) != 0:
            raise _error(f"Landlock, {name}")
    finally:
        os.close(descriptor)


def _call(number: int, *args: object) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(number, *args))


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def look(found: Brief | None, inside: Fence) -> Found:
    """Go inside, and see whether what a trainer needs is there. For a process that does nothing else."""
    devices = [str(path) for pattern in ARMS_AND_CAMERAS for path in DEVICES.glob(pattern)]
    problem, version = "", 0
    try:
        version = enter(inside)
        for name in inside.readable:
            with contextlib.suppress(FileNotFoundError):  # no policy yet, a dataset that was deleted: no fence's fault
                os.listdir(name)
        for name in inside.writable:
            trial = Path(name, ".trial")
            trial.touch()
            trial.unlink()
        Path(__file__).read_bytes()
    except OSError as error:
        problem = f"cannot use {error.filename or 'the fence'}: {error.strerror}"
    own = str(os.geteuid())
    with contextlib.suppress(KeyError):
        own = pwd.getpwuid(os.geteuid()).pw_name
    # access() knows nothing of Landlock, under which none of them can be opened.
    reached = () if version else tuple(name for name in devices if os.access(name, os.R_OK))
    return Found(own, version, reached, problem and f"a trainer runs as {own} here, and {problem}")


def main() -> None:
    from agent.fl.runner import rules

    its, found = rules(), brief.read_brief()
    sys.stdout.write(msgspec.json.encode(look(found, fence(found, None, its.uid, its.gid))).decode() + "\n")


if __name__ == "__main__":
    main()
