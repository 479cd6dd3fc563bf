"""What a person sees of a station, and what a program gets."""

import json
import os
import pty
import signal
import subprocess
import sys
from typing import Any

import pytest

from agent.errors import Exit
from tests.cli.conftest import Cli

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
STATUS: dict[str, Any] = {
    "station": "kitchen",
    "version": "0.1.0",
    "config_hash": "abc",
    "uptime_s": 3725.0,
    "mode": "teleop",
    "reason": "following the leader",
    "recording": {
        "task": "reach the disc", "source": "teleop", "phase": "episode", "episode": 1, "episodes": 2, "frames": 30,
        "seconds": 1.0, "repeats": {"front": 2}, "committed": 0,
    },
    "arm": {
        "drive": "follow", "reason": "following the leader", "bus_connected": True, "leader_connected": False,
        "leader_reason": "no answer", "torque_on": True, "estop_verified": True, "supervisor_lost": True,
        "measured": [1.25, -2.0, 3.0, 4.0, 5.0, 6.0], "sent": [1.5, -2.0, 3.0, 4.0, 5.0, 6.0],
        "bus_errors": 3, "reconnects": 1, "limited": 7,
        "loop": {"rate_hz": 30.0, "period_error_p50_ms": 0.02, "period_error_p99_ms": 0.11,
                 "period_error_max_ms": 0.4, "overruns": 0, "scheduling": "SCHED_FIFO 10"},
    },
    "servos": {
        name: {"name": name, "id": 1, "status_bits": 0, "temperature_c": 61.0, "voltage_v": 5.1, "load_pct": 12.0,
               "torque_on": True, "alarms": ["overheat"] if name == "gripper" else []}
        for name in JOINTS
    },
    "cameras": {
        "front": {"state": "streaming", "fps": 30.0, "age_ms": 12.0, "view": "OBS_IMAGE_1"},
        "wrist": {"state": "down", "reason": "unplugged", "age_ms": None},
    },
    "recorder": {"state": "recording", "reason": "", "episodes": 12, "salvaged": 1, "free_bytes": 73e9,
                 "last": {"episode": 11, "outcome": "committed", "frames": 240, "reason": ""}},
    "policy": None,
    "federation": None,
    "children": {"camera-wrist": {"pid": None, "restarts": 4, "last_exit": "exit 5", "failed": ""},
                 "arm": {"pid": 7, "restarts": 0, "last_exit": "", "failed": ""}},
}  # fmt: skip


def test_status_for_programs_is_the_agents_object_unchanged(cli: Cli, agent: Any) -> None:
    it = agent({"status": STATUS})
    assert cli("status", "--json", "--socket", it.socket).json == STATUS


def test_status_for_people_shows_what_matters(cli: Cli, agent: Any) -> None:
    it = agent({"status": STATUS})
    result = cli("status", "--socket", it.socket)
    assert result.code == Exit.DONE
    for words in (
        "TELEOP", "following the leader", "kitchen", "1 h 2 min", "reach the disc", "2 repeated", "overheat",
        "SCHED_FIFO 10", "30.00 Hz", "supervisor lost", "no answer", "unplugged", "12 ms", "12 episodes", "exit 5",
    ):  # fmt: skip
        assert words in result.out, words


@pytest.mark.parametrize("absent", ["arm", "servos", "cameras", "recorder", "recording", "children"])
def test_status_shows_a_station_of_which_a_part_is_missing(cli: Cli, agent: Any, absent: str) -> None:
    it = agent({"status": STATUS | {absent: None}})
    assert cli("status", "--socket", it.socket).code == Exit.DONE


def test_status_shows_an_arm_that_was_never_read(cli: Cli, agent: Any) -> None:
    arm = STATUS["arm"] | {"measured": None, "sent": None, "loop": None}
    it = agent({"status": STATUS | {"arm": arm, "servos": {}, "uptime_s": 0.0}})
    assert "0 s" in cli("status", "--socket", it.socket).out


def test_watching_goes_on_until_ctrl_c(agent: Any) -> None:
    it = agent({"status": STATUS})
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "agent.cli", "status", "--watch", "--socket", it.socket], stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        shown = b""
        while shown.count(b"TELEOP") < 2:
            shown += os.read(mine, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()
        os.close(mine)


def test_watching_for_programs_is_one_object_a_line(agent: Any) -> None:
    it = agent({"status": STATUS})
    process = subprocess.Popen(
        [sys.executable, "-m", "agent.cli", "status", "--watch", "--json", "--socket", it.socket],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout
        assert [json.loads(process.stdout.readline())["mode"] for _ in range(2)] == ["teleop", "teleop"]
    finally:
        process.kill()
        process.wait()
