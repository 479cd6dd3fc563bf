"""Commands against a real station: the demo from start to finish, what a crash leaves, faults on command."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import StationConfig
from agent.errors import Exit
from agent.virtual.arm import VirtualArm, default_calibration
from tests.cli.conftest import Cli
from tests.cli.wire import Agent

ROOT = Path(__file__).resolve().parents[2]
MARK = "SO_AGENT_TEST_DEMO"


@pytest.fixture
def file(make_config: Any, short_dir: Path) -> Path:
    path = short_dir / "station.yaml"
    path.write_text(make_config(cameras={}).model_dump_json())  # JSON is YAML
    return path


@pytest.fixture
def virtual(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The virtual station, without cameras, started by the command."""
    process = subprocess.Popen(
        [sys.executable, "-m", "agent.cli", "virtual-station", "-c", file, "--no-cameras"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout
    assert b"ready" in process.stdout.readline()
    yield process
    process.terminate()
    process.wait(20)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_demo_records_real_episodes_and_leaves_nothing_running(short_dir: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "agent.cli", "demo", "--folder", short_dir / "demo", "--episode-s", "2", "--json"],
        capture_output=True, text=True, timeout=380, cwd=ROOT, env=os.environ | {MARK: str(short_dir)},
    )  # fmt: skip
    assert result.returncode == Exit.DONE, result.stderr + result.stdout
    outcome = json.loads(result.stdout)
    shown = outcome["episodes"][:2]
    assert [(about["episode"], about["frames"], about["source"]) for about in shown] == [
        (0, 60, "teleop"),
        (1, 60, "teleop"),
    ]
    tasks = outcome["tasks"]
    assert [(task["task"], task["taken_over"]) for task in tasks] == [
        ("touch the red disc", False),
        ("touch the blue disc", False),
        ("touch the red disc", True),
    ]
    done = [task for task in tasks if not task["problem"]]  # on a busy host servos answer late, and the arm stops
    assert done
    assert all(task["chunks"] > 0 for task in done)
    assert outcome["period_error_p99_ms"] > 0
    assert len(outcome["pictures"]) >= 2
    assert all(Path(picture).stat().st_size > 10_000 for picture in outcome["pictures"])
    station = short_dir / "demo" / "station.yaml"
    checked = subprocess.run(
        [sys.executable, "-m", "agent.cli", "episodes", "check", "-c", station],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert checked.stdout == f"{len(outcome['episodes'])} episodes, all whole.\n", checked.stderr
    assert _processes_of(short_dir) == []


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_and_everything_it_started(short_dir: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "agent.cli", "demo", "--folder", short_dir / "demo"],
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {MARK: str(short_dir)},
    )
    assert demo.stderr
    assert "virtual arm" in demo.stderr.readline().decode()  # it is up; the agent is starting
    demo.send_signal(signal.SIGINT)
    assert demo.wait(60) == 130
    demo.stderr.close()
    assert _processes_of(short_dir) == []


def _processes_of(folder: Path) -> list[str]:
    """Processes that inherited the mark of this test, after a moment for those that are just leaving."""
    found: list[str] = []
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        found = []
        for process in Path("/proc").iterdir():
            if not process.name.isdecimal() or int(process.name) == os.getpid():
                continue
            try:
                if f"{MARK}={folder}\0".encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue
        if not found:
            break
        time.sleep(0.05)
    return found


def test_faults_are_injected_and_the_stations_state_is_shown(
    cli: Cli, file: Path, virtual: subprocess.Popen[bytes]
) -> None:
    assert cli("inject", '{"drop": {"servo": 3, "count": 1}}', "-c", file).out == "Done.\n"
    state = cli("inject", '{"state": true}', "-c", file, "--json")
    assert set(state.json["state"]["arms"]) == {"follower", "leader"}
    unknown = cli("inject", '{"explode": true}', "-c", file)
    assert unknown.code == Exit.BAD_INPUT
    assert "explode" in unknown.err


@pytest.mark.parametrize("request_text", ["{", "[]", "3"])
def test_what_is_no_json_object_is_not_injected(cli: Cli, file: Path, request_text: str) -> None:
    assert cli("inject", request_text, "-c", file).code == Exit.BAD_INPUT


def test_nothing_is_injected_where_no_virtual_station_runs(cli: Cli, file: Path) -> None:
    result = cli("inject", '{"state": true}', "-c", file)
    assert result.code == Exit.NOT_RUNNING
    assert "virtual-station" in result.err


def test_repair_is_refused_while_the_agent_runs_and_has_nothing_to_do_on_a_clean_station(
    cli: Cli, file: Path, make_config: Any
) -> None:
    config: StationConfig = make_config(cameras={})
    with Agent(config.paths.agent_socket, {}):
        refused = cli("episodes", "repair", "-c", file)
    assert refused.code == Exit.REFUSED
    config.state_dir.mkdir(exist_ok=True)
    assert cli("episodes", "repair", "-c", file).out == "Nothing to repair.\n"
    assert cli("episodes", "check", "-c", file).out == "0 episodes, all whole.\n"


def test_a_damaged_dataset_is_reported_with_what_is_wrong(cli: Cli, file: Path, make_config: Any) -> None:
    dataset = make_config(cameras={}).paths.dataset
    (dataset / "meta").mkdir(parents=True)
    (dataset / "meta" / "info.json").write_text("{")
    result = cli("episodes", "check", "-c", file)
    assert result.code == Exit.DEVICE_FAULT
    assert "info.json" in result.err


def test_a_second_agent_on_one_state_folder_is_refused(cli: Cli, file: Path, make_config: Any) -> None:
    import fcntl

    config: StationConfig = make_config(cameras={})
    config.state_dir.mkdir()
    with (
        config.paths.lock.open("w") as lock,
        VirtualArm(config.robot.follower.port, default_calibration("so101")),
        VirtualArm(config.robot.leader.port, default_calibration("so101", "leader")),  # type: ignore[union-attr]
    ):
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = subprocess.run(
            [sys.executable, "-m", "agent.cli", "run", "-c", file], capture_output=True, text=True, timeout=60, cwd=ROOT
        )
    assert result.returncode == Exit.BAD_INPUT
    assert "pid 4711" in result.stderr
