"""What a trainer may reach: looked at from inside of it, in processes that really gave up what they say."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.cli.fl import _trainers
from agent.config import Federation
from agent.fl import shelter
from agent.fl.brief import VARIABLE as BRIEF
from agent.fl.brief import Brief, replace
from agent.fl.runner import VARIABLE as RULES
from agent.fl.runner import Rules
from agent.fl.shelter import Fence, Found
from agent.fl.supernode import Folders
from tests.fl.bench import ROOT

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
FENCED = pytest.mark.skipif(not shelter.landlock(), reason="this kernel has no Landlock")

TRIES = """
import os, socket, sys
from pathlib import Path
from agent.fl import shelter
import msgspec

def can(what, do):
    try:
        do()
    except OSError:
        return
    print(what)

if sys.argv[2] == "no-landlock":
    shelter.landlock = lambda: 0
shelter.enter(msgspec.json.decode(sys.argv[1], type=shelter.Fence))
can("uid 0", lambda: os.setuid(0))
can("groups", lambda: os.setgroups([0]))
for each in sys.argv[4:]:
    can(f"read {each}", lambda: Path(each).read_bytes())
    can(f"write {each}", lambda: Path(each).open("r+b").close())
    can(f"list {each}", lambda: os.listdir(each))
    can(f"make in {each}", lambda: Path(each, "new").touch())
can("signal", lambda: os.kill(os.getppid(), 0))
for port in map(int, sys.argv[3].split(",")):
    can(f"connect {port}", lambda: socket.create_connection(("127.0.0.1", port), timeout=5).close())
can("listen", lambda: socket.create_server(("127.0.0.1", 0)).close())
import lzma, numpy, flwr.app  # all that is installed can still be imported
can("null", lambda: Path("/dev/null").write_text("x"))
can("random", lambda: os.urandom(4) and Path("/dev/urandom").open("rb").read(4))
print(f"is {os.geteuid()} in {os.getgroups()}")
"""


@pytest.fixture
def station() -> Iterator[Path]:
    """A station's folder with a dataset that may be learnt from, one that may not, and a key."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="so-") as name:
        folder = Path(name)
        for each in ("kitchen", "diary", "scratch"):
            (folder / each).mkdir(mode=0o700)
            (folder / each / "data").write_text("rows")
        (folder / "station.key").write_text("secret")
        (folder / "station.key").chmod(0o600)
        device = folder / "tty"
        with contextlib.suppress(PermissionError):  # zeroes, with the rights that serial ports have
            os.mknod(device, 0o20660, os.makedev(1, 5))
            os.chown(device, 0, 20)
        yield folder


def tried(folder: Path, fence: Fence, *, landlock: bool = True) -> set[str]:
    """What a process behind the fence could do, as words, with folders named from the station's."""
    paths = [folder / each for each in ("kitchen", "diary", "scratch", "station.key", "tty")]
    words = [*map(str, paths), str(folder / "kitchen" / "data"), "/etc/shadow", "/dev"]
    command = [sys.executable, "-c", TRIES, msgspec.json.encode(fence).decode(), "" if landlock else "no-landlock"]
    with socket.create_server(("127.0.0.1", 0)) as own, socket.create_server(("127.0.0.1", 0)) as others:
        ports = [each.getsockname()[1] for each in (own, others)]
        command[3] = msgspec.json.encode(msgspec.structs.replace(fence, port=ports[0])).decode()
        words.insert(0, ",".join(map(str, ports)))
        done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = done.stdout.replace(f"{folder}/", "").replace(f"connect {ports[0]}", "connect").splitlines()
    return {line.replace(str(ports[1]), "elsewhere") for line in found}


def fence(folder: Path, owner: tuple[int, int] | None = None) -> Fence:
    return Fence((str(folder / "kitchen"),), (str(folder / "scratch"),), None, *(owner or (None, None)))


NEEDED = {"list kitchen", "read kitchen/data", "list scratch", "make in scratch", "null", "random", "connect"}
NETWORK = set() if shelter.landlock() >= shelter.NETWORK_SINCE else {"connect elsewhere", "listen"}
"""Where the kernel does not fence it."""


@FENCED
@ROOT_ONLY
def test_as_root_a_trainer_is_nobody_and_opens_only_what_is_on_its_list(station: Path) -> None:
    other = shelter.user()
    assert other is not None
    os.chown(station / "scratch", *other)
    assert tried(station, fence(station, other)) == NEEDED | NETWORK | {f"is {other[0]} in []"}


@FENCED
def test_without_another_user_it_opens_only_what_is_on_its_list(station: Path) -> None:
    """As in the shipped service, whose user may open arms and cameras, and become nobody else."""
    found = tried(station, fence(station))
    assert {each for each in found if not each.startswith("is ")} - {"uid 0", "groups"} == NEEDED | NETWORK


@ROOT_ONLY
def test_as_root_without_landlock_it_is_nobody(station: Path) -> None:
    """What nobody may not read it does not read, and that goes for devices."""
    other = shelter.user()
    assert other is not None
    for each in (station, station / "kitchen"):
        each.chmod(0o755)
    os.chown(station / "scratch", *other)
    reachable = _python_is_open()
    if not reachable:
        pytest.skip("this Python lies in a folder that is closed to others")
    found = tried(station, fence(station, other), landlock=False)
    assert found == NEEDED | {"connect elsewhere", "listen", "list /dev", f"is {other[0]} in []"}


def _python_is_open() -> bool:
    folders = [each for name in shelter.python() for each in (Path(name), *Path(name).parents) if each.exists()]
    return all(folder.stat().st_mode & 0o001 for folder in folders if folder.is_dir())


def brief(station: Path) -> Brief:
    return Brief(
        station="kitchen",
        datasets=(str(station / "kitchen"),),
        held_out=0.2,
        policies=str(station / "policies"),
        flag=str(station / "work" / "flag"),
        progress=str(station / "scratch" / "progress.json"),
        candidates=str(station / "candidates"),
        scratch=str(station / "scratch"),
        threads=1,
        ledger=str(station / "privacy" / "ledger.json"),
    )


def looked(station: Path) -> Found:
    """As an agent looks before it starts a SuperNode."""
    folders = Folders(station)
    folders.renew(Federation(), None)
    replace(folders.brief, brief(station))
    environment = os.environ | {BRIEF: str(folders.brief), RULES: str(folders.rules)}
    done = subprocess.run(
        [sys.executable, "-m", "agent.fl.shelter"], cwd=ROOT, env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=Found)


@FENCED
def test_an_agent_looks_from_inside_before_it_joins(station: Path) -> None:
    found = looked(station)
    assert found.problem == ""
    assert found.landlock
    assert found.devices == ()
    assert found.user == ("nobody" if os.geteuid() == 0 else found.user)
    rules = msgspec.json.decode(Folders(station).rules.read_bytes(), type=Rules)
    assert (rules.uid, rules.gid) == (shelter.user() or (None, None))


def test_what_a_trainer_could_not_use_is_a_sentence(station: Path) -> None:
    (station / "kitchen").rename(station / "elsewhere")
    (station / "kitchen").write_text("not a dataset")
    problem = looked(station).problem
    assert problem.startswith("a trainer runs as ")
    assert problem.endswith(f"cannot use {station / 'kitchen'}: Not a directory")


def test_a_person_is_told_what_trainers_can_reach() -> None:
    shown = _trainers({"user": "so-agent", "landlock": 7, "devices": (), "problem": ""})
    assert shown == "run as so-agent, and can open files on their list only, and no arm and no camera"
    shown = _trainers({"user": "ada", "landlock": 0, "devices": ("/dev/ttyACM0",), "problem": ""})
    assert shown == "run as ada, and can open whatever files that user may, and /dev/ttyACM0"
    assert _trainers(None) is None
