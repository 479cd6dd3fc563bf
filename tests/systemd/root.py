"""A small Debian to boot: made once by debootstrap, kept between runs, never written to.

`SO_AGENT_TEST_CACHE` is where; it must not be a temporary folder, for a root takes minutes to make.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

CACHE: Final = Path(os.environ.get("SO_AGENT_TEST_CACHE") or "~/.cache/so-agent").expanduser()

PACKAGES: Final = (
    "systemd", "systemd-sysv", "dbus", "udev", "umockdev", "kmod",
    # What interpreters of whatever origin link against.
    "libbz2-1.0", "libexpat1", "libffi8", "liblzma5", "libncursesw6", "libreadline8", "libsqlite3-0", "libssl3",
    "libuuid1", "zlib1g",
)  # fmt: skip

MAKE_S: Final = 900.0
"""One to three minutes with a near mirror; a slow one is no reason to fail."""


class Unavailable(Exception):
    """This machine cannot do it. The text says why; tests are skipped with it."""


def root() -> Path:
    """The folder of the root file system, made if need be. Raises Unavailable."""
    release = platform.freedesktop_os_release()
    suite = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" and "debian" not in release.get("ID_LIKE", ""):
        raise Unavailable(f"{release.get('PRETTY_NAME')} is not Debian or made from it")
    for tool, package in (("debootstrap", "debootstrap"), ("systemd-nspawn", "systemd-container")):
        if not shutil.which(tool):
            raise Unavailable(f"{tool} is not installed: apt-get install {package}")
    packages = [*PACKAGES, *_interpreter()]
    content = hashlib.sha256(" ".join([suite, *packages]).encode()).hexdigest()[:8]
    folder = CACHE / f"systemd-root-{suite}-{content}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "systemd-root.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "lib/systemd/systemd").exists():
            _make(folder, suite, packages)
    return folder


def _interpreter() -> list[str]:
    """Where the environment's Python is the system's own, the root needs the same package."""
    if Path(sys.base_prefix) == Path("/usr"):
        return [f"python{sys.version_info.major}.{sys.version_info.minor}"]
    return []


def _make(folder: Path, suite: str, packages: list[str]) -> None:
    fresh = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(fresh, ignore_errors=True)
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite, str(fresh), _mirror(suite)]
    log = folder.with_suffix(".log")
    try:
        with log.open("w") as output:
            made = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=MAKE_S)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"debootstrap did not end within {MAKE_S:g} s; see {log}") from error
    if made.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise Unavailable(f"debootstrap failed: {last[0]}; see {log}")
    shutil.rmtree(fresh / "var/cache/apt", ignore_errors=True)
    fresh.rename(folder)


def _mirror(suite: str) -> str:
    """Where this machine's own apt gets that suite from."""
    wanted = "$(SITE) $(RELEASE) $(COMPONENT)"
    try:
        targets = subprocess.run(
            ["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"],
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"apt does not say where packages come from: {error}") from error
    for line in targets.splitlines():
        site, release, component = line.split()
        if release == suite and component == "main":
            return site
    raise Unavailable(f"apt knows no source for {suite}")
