"""A machine with a real systemd as PID 1, in a container of its own: booted, rebooted, and cut from its power.

It sees a root file system through an overlay that lives in memory, and of this machine only what is bound in, read-only
but for one folder. It never boots this machine's own root: systemd would clean up in it.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.systemd.root import Unavailable

BOOT_S: Final = 60.0
STOP_S: Final = 120.0
"""For a reboot to stop the station, which its unit allows 75 s."""

REBOOT: Final = 133
"""What nspawn ends with when the machine wants to be booted again."""

COMMAND_S: Final = 120.0
LOOK_S: Final = 0.05

SHARED: Final = Path("/bench")
"""Where the shared folder is seen. Not in a temporary folder, which systemd empties."""

PRIVILEGES: Final = (
    "--capability=CAP_SYS_RESOURCE,CAP_BPF,CAP_PERFMON",
    "--system-call-filter=bpf landlock_create_ruleset landlock_add_rule landlock_restrict_self",
)
"""Which nspawn withholds and a systemd has that is PID 1 of hardware: to raise limits, to enforce DeviceAllow=, and for
programs to shut themselves in."""

NAMESPACES: Final = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")

UP: Final = ("running", "degraded")
CLEAN_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

# A mount namespace of its own, which outlives each boot: what was written is still there after a power cut.
MOUNTS: Final = """
mount -t tmpfs -o mode=755,size=2G tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
echo mounted
exec sleep infinity
"""


class Machine:
    """`shown` are folders of this machine that it sees at the same place, read-only; `shared` one that both write."""

    def __init__(self, folder: Path, root: Path, shown: Sequence[Path], shared: Path) -> None:
        if not (root / "lib/systemd/systemd").exists() or root.resolve() == Path("/"):
            raise ValueError(f"{root} is not a root to boot")
        self._folder = folder
        self._root = root
        self._shown = [path.resolve() for path in shown]
        self._shared = shared
        self._cgroup = _cgroup(f"so-agent-test-{os.getpid()}")
        self._keeper: subprocess.Popen[str] | None = None
        self._container: subprocess.Popen[bytes] | None = None
        self._log = folder / "console.log"
        self.leader = 0  # the machine's PID 1, as this machine numbers it

    def mount(self) -> None:
        """Raises Unavailable where that is not allowed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (mounts := self._folder / "machine").mkdir(exist_ok=True)
        self._keeper = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "bash", "-euc", MOUNTS, "-", mounts, self._root],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self._keeper.stdout
        if (said := self._keeper.stdout.readline().strip()) != "mounted":
            raise Unavailable(f"no overlay can be mounted here: {said}")

    def boot(self) -> None:
        """Until systemd has started everything. Raises Unavailable where containers are not allowed."""
        assert self._keeper
        binds = [f"--bind-ro={path}" for path in self._shown]
        argv = [
            "nsenter", f"--target={self._keeper.pid}", "--mount",
            "systemd-nspawn", "--quiet", "--boot", f"--directory={self._folder}/machine/root",
            "--register=no", "--keep-unit", "--console=pipe", *PRIVILEGES, *binds, f"--bind={self._shared}:{SHARED}",
        ]  # fmt: skip
        enter = f"echo $$ > {shlex.quote(str(self._cgroup / 'cgroup.procs'))}; exec " + shlex.join(map(str, argv))
        self._container = subprocess.Popen(
            ["bash", "-euc", enter],
            stdin=subprocess.DEVNULL,
            stdout=self._log.open("ab"),
            stderr=subprocess.STDOUT,
            env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )
        try:
            wait_for("the machine is up", self._is_up, BOOT_S, self.console)
        except AssertionError as error:
            raise Unavailable(f"systemd does not boot in a container here: {error}") from error

    def _is_up(self) -> bool:
        assert self._container
        assert self._container.poll() is None, f"the container ended: {self.console()}"
        self.leader = self._find_leader()
        return self.leader != 0 and self.state() in UP

    def _find_leader(self) -> int:
        """The child of nspawn that is PID 1 in a namespace of its own; 0 while there is none."""
        assert self._container
        for pid in _descendants(self._container.pid):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
                if len(numbers) > 1 and numbers[-1] == "1" and Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                    return pid
        return 0

    def reboot(self) -> None:
        """As an administrator does it; services are stopped first."""
        assert self._container
        self.run("systemctl", "reboot", check=False)
        ended = self._container.wait(STOP_S)
        assert ended == REBOOT, f"nspawn ended with {ended}: {self.console()}"
        self.boot()

    def cut_power(self) -> None:
        """Everything ends in this instant; `boot` starts it again."""
        os.kill(self.leader, signal.SIGKILL)
        assert self._container
        self._container.wait(BOOT_S)
        self.leader = 0

    def close(self) -> None:
        for pid in (self.leader, self._container.pid if self._container and self._container.poll() is None else 0):
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in (self._container, self._keeper):
            if process:
                process.kill()
                process.wait()
        # The kernel lets go of the processes a moment after they have ended.
        wait_for("its control group is empty", lambda: _remove(self._cgroup), 10.0)

    # --- using it ---

    def run(
        self, *argv: str | Path, check: bool = True, timeout_s: float = COMMAND_S, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root on it."""
        ran = subprocess.run(
            ["nsenter", f"--target={self.leader}", *NAMESPACES, "--", *argv],
            capture_output=True, text=True, timeout=timeout_s, env=CLEAN_ENVIRONMENT, cwd="/", input=stdin or "",
        )  # fmt: skip
        if check and ran.returncode:
            raise AssertionError(f"{shlex.join(map(str, argv))}: {ran.returncode}\n{ran.stdout}{ran.stderr}")
        return ran

    def path(self, path: str | Path) -> Path:
        """A file of it, as this machine reaches it."""
        return Path(f"/proc/{self.leader}/root") / Path(path).relative_to("/")

    def state(self) -> str:
        return self.run("systemctl", "is-system-running", check=False).stdout.strip()

    def show(self, unit: str, key: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", f"--property={key}", "--value", unit).stdout.strip()

    def journal(self, *options: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", *options, check=False).stdout

    def console(self) -> str:
        return self._log.read_text(errors="replace")[-1500:] if self._log.exists() else ""


def wait_for(what: str, probe: Callable[[], object], timeout_s: float, detail: Callable[[], str] = str) -> None:
    """Until `probe` is true. Fails with `what`, and `detail()`."""
    deadline = time.monotonic() + timeout_s
    while not probe():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}. {detail()}")
        time.sleep(LOOK_S)


def _cgroup(name: str) -> Path:
    unified = Path("/sys/fs/cgroup/unified")
    folder = (unified if unified.is_dir() else Path("/sys/fs/cgroup")) / name
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise Unavailable(f"no control group can be made here: {error}") from error
    return folder


def _remove(cgroup: Path) -> bool:
    try:
        for folder in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        cgroup.rmdir()
    except OSError:
        return not cgroup.exists()
    return True


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_descendants(child)]
    return found
