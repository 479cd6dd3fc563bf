"""What a person can do with a running station, and what is refused in which mode."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.errors import Refused
from agent.messages import ArmEstop, ArmReply, ArmReport
from agent.transport import CommandClient
from tests.station.live import ROOT, LiveStation, wait_for

ESTOP_BUDGET_S = 0.1


def enter(station: LiveStation, mode: str) -> None:
    """Bring the station into `mode` the way a person would."""
    match mode:
        case "idle":
            pass
        case "hold":
            station.client.call("hold")
        case "aligning":
            # Far from where the follower lies, so that it is on its way for seconds; one that is led there while the
            # follower is beside it would be followed at once.
            station.inject(operator={"pose": [60, -35, 45, 65, 0, 5]})
            wait_for("the leader is there", lambda: abs(leader_pan(station) - 60) < 1)
            station.client.call("teleop.start")
        case "teleop":
            station.teleop()
        case "homing":
            station.client.call("hold")
            station.client.call("park")
    station.wait_mode(mode)


def leader_pan(station: LiveStation) -> float:
    return float(station.inject(state=True)["state"]["arms"]["leader"]["joints"]["shoulder_pan"])


@pytest.mark.parametrize("mode", ["idle", "hold", "aligning", "teleop", "homing"])
def test_estop_from_every_mode_reaches_the_bus_in_time_and_is_verified(station: LiveStation, mode: str) -> None:
    enter(station, mode)
    before = time.monotonic()
    answer = station.client.call("estop", {"cause": "a test"})
    took_s = time.monotonic() - before
    assert answer["verified"] is True
    assert answer["mode"] == "estop"
    assert took_s <= ESTOP_BUDGET_S
    with pytest.raises(Refused, match="estop"):
        station.client.call("teleop.start")
    station.inject(operator="resume")
    station.client.call("reset")
    station.wait_mode("idle", "hold")


def test_estop_works_while_the_agent_process_is_stopped(station: LiveStation) -> None:
    station.teleop()
    assert station.agent
    os.kill(station.agent.pid, signal.SIGSTOP)
    try:
        arm: CommandClient[ArmReport] = CommandClient(station.config.paths.arm_ctl, ArmReply)
        before = time.monotonic()
        report = arm.ask(ArmEstop("a test"), 2.0)
        assert time.monotonic() - before <= ESTOP_BUDGET_S
        assert report.estop_verified is True
        # The command that a person types takes the same way.
        typed = subprocess.run(
            [sys.executable, "-m", "agent.cli", "-c", station.file, "estop"],
            cwd=ROOT, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert typed.returncode == 0, typed.stderr
    finally:
        os.kill(station.agent.pid, signal.SIGCONT)
    station.wait_mode("estop")
    station.client.call("reset")


def test_an_agent_that_hangs_makes_the_arm_hold(station: LiveStation) -> None:
    station.teleop()
    assert station.agent
    os.kill(station.agent.pid, signal.SIGSTOP)
    try:
        # Asking the arm would count as a sign of life, so watch the arm itself. The operator goes on.
        def still() -> bool:
            before = station.joints()
            time.sleep(1.0)
            return max(abs(a - b) for a, b in zip(before, station.joints(), strict=True)) < 0.5

        wait_for("the arm holds", still, 12.0)
    finally:
        os.kill(station.agent.pid, signal.SIGCONT)
    status = station.wait_mode("hold")
    assert "supervisor" in status["reason"] or "agent" in status["reason"], status["reason"]


def test_park_ends_idle_with_torque_off(station: LiveStation) -> None:
    station.client.call("hold")
    assert station.wait_mode("hold")["arm"]["torque_on"] is True
    station.client.call("park")
    station.wait_mode("homing")
    status = station.wait_mode("idle", timeout_s=30)
    assert status["arm"]["torque_on"] is False


@pytest.mark.parametrize("verb", ["record.start", "teleop.stop", "record.stop", "record.discard", "reset"])
def test_what_makes_no_sense_in_idle_is_refused_with_a_way_out(station: LiveStation, verb: str) -> None:
    with pytest.raises(Refused) as refusal:
        station.client.call(verb, {"task": "x"} if verb == "record.start" else {})
    assert "idle" in refusal.value.message or "recorded" in refusal.value.message


def test_the_daemon_imports_neither_torch_nor_lerobot_and_stays_small(station: LiveStation) -> None:
    assert station.agent
    maps = Path(f"/proc/{station.agent.pid}/maps").read_text()
    assert "torch" not in maps
    assert "lerobot" not in maps
    rss_kb = int(Path(f"/proc/{station.agent.pid}/status").read_text().split("VmRSS:")[1].split()[0])
    assert rss_kb <= 120 * 1024
