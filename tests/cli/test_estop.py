"""The emergency stop from the terminal goes to the arm itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import Exit
from agent.messages import ArmEstop
from tests.cli.conftest import Cli
from tests.cli.wire import Agent, Arm


@pytest.fixture
def run_dir(short_dir: Path) -> Path:
    folder = short_dir / "run"
    folder.mkdir()
    return folder


def test_estop_stops_the_arm_waits_for_the_read_back_and_tells_the_agent(cli: Cli, run_dir: Path) -> None:
    with Arm(run_dir / "arm.ctl", [None, False, True]) as arm, Agent(run_dir / "agent.sock", {"estop": {}}) as agent:
        result = cli("estop", "--cause", "hand in the way", "--socket", run_dir / "agent.sock", "--json")
    assert result.code == Exit.DONE
    [stopped] = result.json["stopped"]
    assert stopped["verified"] is True
    assert stopped["took_ms"] < 1000
    assert arm.stops == [ArmEstop("hand in the way")]
    assert agent.asked == [("estop", {"cause": "hand in the way"})]


def test_estop_works_while_the_agent_hangs(cli: Cli, run_dir: Path) -> None:
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "print('up', flush=True); sys.stdin.read()"
    )
    hung = subprocess.Popen(
        [sys.executable, "-c", code, run_dir / "agent.sock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert hung.stdout
        assert hung.stdout.readline() == b"up\n"
        os.kill(hung.pid, signal.SIGSTOP)
        with Arm(run_dir / "arm.ctl", [True]):
            result = cli("estop", "--socket", run_dir / "agent.sock")
    finally:
        hung.kill()
        hung.wait()
    assert result.code == Exit.DONE
    assert "Stopped in" in result.out
    assert "was not told" in result.err


def test_estop_that_the_servos_do_not_confirm_says_to_cut_the_power(cli: Cli, run_dir: Path) -> None:
    with Arm(run_dir / "arm.ctl", [False]):
        result = cli("estop", "--socket", run_dir / "agent.sock")
    assert result.code == Exit.DEVICE_FAULT
    assert "power supply" in result.err


def test_estop_without_an_arm_process_says_that_nothing_was_stopped(cli: Cli, run_dir: Path) -> None:
    result = cli("estop", "--socket", run_dir / "agent.sock")
    assert result.code == Exit.NOT_RUNNING
    assert "NOT stopped" in result.err
    nowhere = cli("estop")
    assert nowhere.code == Exit.NOT_RUNNING
    assert "power supply" in nowhere.err


def test_estop_without_a_name_stops_every_arm_it_finds(cli: Cli, short_dir: Path) -> None:
    states = short_dir / "home" / ".local" / "state" / "so-agent"
    for name in ("a", "b"):
        (states / name / "run").mkdir(parents=True)
    with Arm(states / "a/run/arm.ctl", [True]) as one, Arm(states / "b/run/arm.ctl", [True]) as other:
        assert cli("estop").code == Exit.DONE
    assert len(one.stops) == len(other.stops) == 1
