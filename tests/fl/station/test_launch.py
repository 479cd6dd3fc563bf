"""What is started for a fleet takes only what nobody else wants, and does not outlive the agent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.fl.launch import Launch, command
from agent.fl.room import Room, Tenant, born

ROOT = Path(__file__).resolve().parents[3]
SLEEP = (sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)")


def started(launch: Launch) -> "subprocess.Popen[str]":
    process = subprocess.Popen(command(launch), stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    assert process.stdout
    assert process.stdout.readline() == "here\n"
    return process


def ended(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not born(pid):
            return True
        time.sleep(0.02)
    return False


def test_it_has_the_lowest_priority_and_goes_first_when_memory_runs_out() -> None:
    process = started(Launch(SLEEP, idle=True))
    try:
        assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "1000"
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
    finally:
        process.kill()
        process.wait()


def test_it_is_told_to_end_when_the_agent_is_killed() -> None:
    """SIGTERM, upon which a SuperNode says goodbye to its fleet."""
    agent = (
        "import subprocess, sys, time\n"
        "from agent.fl.launch import Launch, command\n"
        f"child = subprocess.Popen(command(Launch({SLEEP!r})), stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", agent], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    child = int(process.stdout.readline())
    assert born(child)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert ended(child)


@pytest.fixture(params=["control group", "process group"])
def room(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    if request.param == "process group":
        monkeypatch.setattr("agent.fl.room._base", lambda: None)
    room = Room("test", tmp_path, 2 * 10**9, tmp_path / "trainer.json")
    room.open()
    if request.param != room.kind:
        pytest.skip("this machine lets nobody make control groups here")
    yield room
    room.close()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def stands_still(room: Room, pid: int) -> bool:
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        if room.trainer:
            if "frozen 1" in (room.trainer / "cgroup.events").read_text():
                return True
        elif state(pid) == "T":
            return True
        time.sleep(0.01)
    return False


def test_a_trainer_is_frozen_and_goes_on(room: Room, tmp_path: Path) -> None:
    """Its workers, too: they are in its group."""
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('here', flush=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    trainer = started(Launch((sys.executable, "-c", code), cgroup=room.trainer and str(room.trainer)))
    try:
        assert trainer.stdout
        worker = int(trainer.stdout.readline())
        (tmp_path / "trainer.json").write_bytes(msgspec.json.encode(Tenant(trainer.pid, born(trainer.pid))))
        assert room.tenant() == trainer.pid
        began_s = time.monotonic()
        room.freeze()
        assert time.monotonic() - began_s < 0.05
        assert stands_still(room, trainer.pid)
        assert room.frozen
        if not room.trainer:
            assert stands_still(room, worker)
        room.thaw()
        assert not room.frozen
        assert set(room.pids()) >= {trainer.pid}
        assert room.used_bytes() > 10**6
        room.end_trainer()
        assert trainer.wait(5) == -signal.SIGKILL
        assert ended(worker)
        assert room.tenant() is None
    finally:
        trainer.kill()
        trainer.wait()


def test_a_frozen_trainer_can_be_ended(room: Room, tmp_path: Path) -> None:
    trainer = started(Launch(SLEEP, cgroup=room.trainer and str(room.trainer)))
    (tmp_path / "trainer.json").write_bytes(msgspec.json.encode(Tenant(trainer.pid, born(trainer.pid))))
    room.freeze()
    room.clear()
    assert trainer.wait(5) == -signal.SIGKILL


def test_a_pid_that_was_used_again_is_nobodys_trainer(room: Room, tmp_path: Path) -> None:
    (tmp_path / "trainer.json").write_bytes(msgspec.json.encode(Tenant(os.getpid(), born(os.getpid()) - 1)))
    assert room.tenant() is None
    room.end_trainer()  # or this test would end here


def test_nothing_is_left_of_a_room(room: Room) -> None:
    groups = [group for group in (room.node, room.trainer) if group]
    room.close()
    assert not [group for group in groups if group.exists()]
