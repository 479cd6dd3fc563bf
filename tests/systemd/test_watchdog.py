"""What the service manager is told, on a real notification socket."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.modes import Mode
from agent.watchdog import LOOKS_A_TIMEOUT, PATIENCE_S, ServiceManager, Vitals, Watchdog
from tests.daemon.clocks import HandClock


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[dict[str, str]]:
        messages = []
        while True:
            try:
                message = self.socket.recv(4096).decode()
            except BlockingIOError:
                return messages
            messages.append(dict(line.split("=", 1) for line in message.splitlines()))


@pytest.fixture
def manager(short_dir: Path) -> Iterator[Manager]:
    other_end = Manager(str(short_dir / "notify"))
    yield other_end
    other_end.socket.close()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def watchdog(manager: Manager, clock: HandClock) -> Watchdog:
    return Watchdog(ServiceManager(manager.socket.getsockname(), watchdog_s=15.0), clock)


def test_ready_is_said_once_and_only_when_the_arm_is_known(watchdog: Watchdog, manager: Manager) -> None:
    watchdog.judge(Vitals(Mode.STARTING, "starting", None))
    watchdog.judge(Vitals(Mode.HOLD, "torque was on, holding where it was", 1))
    watchdog.judge(Vitals(Mode.HOLD, "torque was on, holding where it was", 2))
    first, second, third = manager.heard()
    assert "READY" not in first
    assert second["READY"] == "1"
    assert second["STATUS"] == "hold: torque was on, holding where it was"
    assert third == {"WATCHDOG": "1"}


def test_an_arm_that_is_not_there_is_no_reason_to_restart(watchdog: Watchdog, manager: Manager) -> None:
    """The arm process ticks on while it looks for the arm; the status says what is missing."""
    watchdog.judge(Vitals(Mode.FAULT, "The port /dev/x does not exist.\nIs the arm plugged in?", 1))
    (message,) = manager.heard()
    assert message == {
        "READY": "1",
        "STATUS": "fault: The port /dev/x does not exist. Is the arm plugged in?",
        "WATCHDOG": "1",
    }


def test_without_progress_of_the_arm_the_watchdog_is_not_fed(
    watchdog: Watchdog, manager: Manager, clock: HandClock
) -> None:
    watchdog.judge(Vitals(Mode.TELEOP, "", 7))
    clock.pass_s(PATIENCE_S)
    watchdog.judge(Vitals(Mode.TELEOP, "", 7))
    clock.pass_s(1)
    watchdog.judge(Vitals(Mode.TELEOP, "", 7))
    watchdog.judge(Vitals(Mode.TELEOP, "", 8))
    assert ["WATCHDOG" in message for message in manager.heard()] == [True, True, True]  # the starved look sent nothing
    clock.pass_s(PATIENCE_S + 1)
    watchdog.judge(Vitals(Mode.TELEOP, "", 8))
    assert manager.heard() == []


def test_an_arm_process_that_was_given_up_waits_for_a_person(
    watchdog: Watchdog, manager: Manager, clock: HandClock
) -> None:
    for _ in range(3):
        clock.pass_s(PATIENCE_S)
        watchdog.judge(Vitals(Mode.FAULT, "died 5 times", None, given_up="died 5 times"))
    assert [message["WATCHDOG"] for message in manager.heard()] == ["1"] * 3


def test_a_stop_is_announced_and_lives_until_it_is_over(watchdog: Watchdog, manager: Manager, clock: HandClock) -> None:
    watchdog.judge(Vitals(Mode.IDLE, "", 1))
    clock.pass_s(PATIENCE_S + 1)
    watchdog.judge(Vitals(Mode.STOPPING, "the agent is shutting down", 1))
    assert manager.heard()[-1] == {
        "STATUS": "stopping: the agent is shutting down",
        "STOPPING": "1",
        "WATCHDOG": "1",
    }


def test_signs_of_life_fit_several_times_into_the_time_out(manager: Manager, clock: HandClock) -> None:
    for watchdog_s in (0.4, 1.0, 15.0):
        watchdog = Watchdog(ServiceManager(manager.socket.getsockname(), watchdog_s), clock)
        assert watchdog.period_s * LOOKS_A_TIMEOUT <= watchdog_s


async def test_it_speaks_through_an_abstract_socket_and_by_itself(clock: HandClock) -> None:
    name = f"so-agent-test-{os.getpid()}"
    other_end = Manager(f"\0{name}")
    watchdog = Watchdog(ServiceManager(f"@{name}", watchdog_s=1.0), clock)
    task = asyncio.create_task(watchdog.run(lambda: Vitals(Mode.IDLE, "parked", 1)))
    message = await asyncio.get_running_loop().sock_recv(other_end.socket, 4096)
    task.cancel()
    other_end.socket.close()
    assert b"READY=1" in message


def test_a_manager_that_does_not_listen_is_no_error(clock: HandClock, short_dir: Path) -> None:
    Watchdog(ServiceManager(str(short_dir / "nobody"), 1.0), clock).judge(Vitals(Mode.IDLE, "", 1))
    Watchdog(ServiceManager(None, None), clock).judge(Vitals(Mode.IDLE, "", 1))


def test_children_do_not_inherit_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("WATCHDOG_USEC", "15000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert ServiceManager.from_environment().watchdog_s == 15.0
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
    monkeypatch.setenv("WATCHDOG_USEC", "15000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert ServiceManager.from_environment().watchdog_s is None


SPEAK = """
import logging, os, sys
found = os.fstat(2)
if sys.argv[1] == "journal":
    os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
from agent.config import Logging
from agent.telemetry import configure, logger
configure(Logging(format="json"), process="test")
logger.info("fine")
logger.error("broken")
logging.getLogger("a.library").warning("hm")
"""


@pytest.mark.parametrize(("where", "prefixes"), [("journal", ["<6>", "<3>", "<4>"]), ("file", ["", "", ""])])
def test_lines_carry_their_level_into_the_journal_and_nowhere_else(where: str, prefixes: list[str]) -> None:
    spoken = subprocess.run(
        [sys.executable, "-c", SPEAK, where], capture_output=True, text=True, check=True, timeout=60
    ).stderr.splitlines()
    assert len(spoken) == 3
    for line, prefix in zip(spoken, prefixes, strict=True):
        assert line.startswith(prefix)
        json.loads(line.removeprefix(prefix))
