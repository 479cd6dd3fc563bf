"""`check-config` and `run` refuse what would not work, in a sentence, with exit code 2."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cli.check import own_pids
from agent.cli.ports import check_ports
from agent.config import load
from agent.errors import Exit
from tests.cli.conftest import Cli
from tests.cli.wire import Agent, Arm

ROOT = Path(__file__).resolve().parents[2]

type Write = Callable[..., Path]


@pytest.fixture
def ports(short_dir: Path) -> Iterator[tuple[Path, Path]]:
    """Two pseudo-terminals under stable names; this process is the hardware behind them."""
    names, opened = [], []
    for name in ("follower", "leader"):
        master, slave = os.openpty()
        opened += [master, slave]
        link = short_dir / name
        link.symlink_to(os.ttyname(slave))
        names.append(link)
    yield names[0], names[1]
    for descriptor in opened:
        os.close(descriptor)


@pytest.fixture
def write(short_dir: Path) -> Write:
    """Write the virtual configuration with changes: `write(robot={"control_hz": 31})` merges into it."""

    def merge(base: dict[str, Any], changes: dict[str, Any]) -> None:
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(base.get(key), dict):
                merge(base[key], value)
            else:
                base[key] = value

    def make(**changes: Any) -> Path:
        values = yaml.safe_load((ROOT / "configs/so101/virtual.yaml").read_text())
        values["state_dir"] = str(short_dir / "state")
        for arm in ("follower", "leader"):
            values["robot"][arm]["port"] = str(short_dir / arm)
        merge(values, changes)
        file = short_dir / "station.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    return make


@contextmanager
def other_process(port: Path) -> Iterator[int]:
    """Another program that has the port open."""
    code = "import os, sys; os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY); print('up', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_a_good_configuration_passes_and_warns_about_missing_calibration(
    cli: Cli, write: Write, ports: tuple[Path, Path]
) -> None:
    result = cli("check-config", write(), "--json")
    assert result.code == Exit.DONE
    levels = {finding["name"]: finding["level"] for finding in result.json["findings"]}
    assert levels["robot.follower.port"] == levels["state_dir"] == levels["cameras.front"] == "ok"
    assert levels["follower calibration"] == "warning"
    for_people = cli("check-config", "-c", write())
    assert for_people.code == Exit.DONE
    assert "so-agent calibrate" in for_people.out


def test_a_port_that_another_process_holds_is_named_with_its_holder(
    cli: Cli, write: Write, ports: tuple[Path, Path]
) -> None:
    file = write()
    with other_process(ports[1]) as pid:
        result = cli("check-config", file, "--json")
        started = cli("run", "-c", file, "--wait")
    assert result.code == started.code == Exit.BAD_INPUT
    assert f"held by pid {pid} (" in result.json["message"]
    assert "robot.leader.port" in result.json["message"]
    assert f"held by pid {pid} (" in started.err


def test_ports_that_do_not_exist_are_named(cli: Cli, write: Write) -> None:
    for words in (["check-config"], ["run", "-c"]):
        result = cli(*words, write())
        assert result.code == Exit.BAD_INPUT
        assert "does not exist" in result.out + result.err
    assert "--wait" in result.err


def test_a_file_is_no_serial_port(cli: Cli, write: Write, short_dir: Path, ports: tuple[Path, Path]) -> None:
    (short_dir / "plain").touch()
    result = cli("check-config", write(robot={"follower": {"port": str(short_dir / "plain")}}), "--json")
    assert result.code == Exit.BAD_INPUT
    assert "not a serial port" in result.json["message"]


def test_a_camera_type_that_lerobot_does_not_know_is_refused_with_those_it_knows(
    cli: Cli, write: Write, ports: tuple[Path, Path]
) -> None:
    result = cli("check-config", write(cameras={"wrist": {"type": "kodak"}}), "--json")
    assert result.code == Exit.BAD_INPUT
    assert "'kodak'" in result.json["message"]
    assert "opencv" in result.json["hint"]


def test_a_camera_that_is_not_plugged_in_is_a_warning(cli: Cli, write: Write, ports: tuple[Path, Path]) -> None:
    camera = {"type": "opencv", "options": {"index_or_path": "/dev/v4l/by-id/none"}}
    result = cli("check-config", write(cameras={"wrist": camera}), "--json")
    assert result.code == Exit.DONE
    assert "not there" in json.dumps(result.json)


def test_a_state_folder_that_cannot_be_made_is_refused(
    cli: Cli, write: Write, short_dir: Path, ports: tuple[Path, Path]
) -> None:
    (short_dir / "file").touch()
    result = cli("check-config", write(state_dir=str(short_dir / "file" / "state")), "--json")
    assert result.code == Exit.BAD_INPUT
    assert "cannot be written" in result.json["message"]


def test_too_little_free_disk_is_a_warning(cli: Cli, write: Write, ports: tuple[Path, Path]) -> None:
    result = cli("check-config", write(recording={"min_free_gb": 1e6}))
    assert result.code == Exit.DONE
    assert "Free some space" in result.out


def test_free_disk_is_counted_as_the_recorder_counts_it(cli: Cli, write: Write, ports: tuple[Path, Path]) -> None:
    free_gb = shutil.disk_usage("/tmp").free / 1e9
    result = cli("check-config", write(recording={"min_free_gb": 0.97 * free_gb}), "--json")
    assert [found["level"] for found in result.json["findings"] if found["name"] == "state_dir"] == ["ok"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recroding": {}}, ["recroding", "unknown key"]),
        ({"robot": {"control_hz": 5}}, ["robot.control_hz", "found 5", "10"]),
        ({"robot": {"control_hz": 31}}, ["multiple of recording.fps"]),
        ({"recording": {"fps": 0}}, ["recording.fps", "found 0"]),
        ({"recording": {"dataset": "../../etc"}}, ["recording.dataset", "'../../etc'"]),
        ({"station": "a/b"}, ["station", "'a/b'"]),
        ({"robot": {"follower": {"id": ".."}}}, ["robot.follower.id", "'..'"]),
        ({"run_dir": "/tmp/" + "x" * 120}, ["bytes long", "run_dir"]),
    ],
)
def test_wrong_values_are_refused_with_their_place_and_what_is_allowed(
    cli: Cli, write: Write, changes: dict[str, Any], words: list[str]
) -> None:
    result = cli("check-config", write(**changes))
    assert result.code == Exit.BAD_INPUT
    for word in words:
        assert word in result.err


def test_a_cut_off_file_is_refused_with_the_line(cli: Cli, short_dir: Path) -> None:
    text = (ROOT / "configs/so101/station.yaml").read_text()
    file = short_dir / "cut.yaml"
    file.write_text(text[: text.index("calibration_dir") + 20])
    result = cli("check-config", file)
    assert result.code == Exit.BAD_INPUT
    assert "line" in result.err
    assert "cut off" in result.err


def test_no_file_at_all_is_refused(cli: Cli, short_dir: Path) -> None:
    assert cli("check-config", short_dir / "none.yaml").code == Exit.BAD_INPUT
    assert "-c FILE" in cli("check-config").err


@pytest.mark.parametrize(
    ("task", "words"),
    [("", "empty"), ("   ", "empty"), ("x" * 31, "31 characters"), ("two\nlines", "control characters")],
)
def test_a_task_text_that_nobody_could_use_is_refused_before_the_agent_is_asked(
    cli: Cli, task: str, words: str
) -> None:
    result = cli("record", "start", "--task", task)
    assert result.code == Exit.BAD_INPUT
    assert words in result.err


@pytest.mark.parametrize(
    "words", [["--episodes", "0"], ["--episode-s", "0.2"], ["--reset-s", "-1"], ["--episodes", "many"]]
)
def test_impossible_plans_are_refused(cli: Cli, words: list[str]) -> None:
    assert cli("record", "start", "--task", "reach", *words).code == Exit.BAD_INPUT


def test_a_dataset_name_is_no_path(cli: Cli, write: Write) -> None:
    result = cli("episodes", "list", "-c", write(), "--dataset", "../other")
    assert result.code == Exit.BAD_INPUT
    assert "never a path" in result.err
    assert cli("episodes", "list", "-c", write(), "--json").json == []
    assert "no episodes yet" in cli("episodes", "show", "3", "-c", write()).err


def test_the_command_line_starts_quickly_and_without_torch_or_lerobot() -> None:
    code = (
        "import sys, time, agent.cli, agent.daemon; heavy = {'torch', 'lerobot', 'mujoco', 'pandas', 'pyarrow', 'cv2'};"
        "print(time.process_time(), *heavy & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    cpu_s, *heavy = result.stdout.split()
    assert heavy == []
    assert float(cpu_s) < 3  # 0.5 s on an idle machine; CPU time, because the suite's machine is not idle


def test_the_installed_command_exits_with_the_documented_code(write: Write) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "SO_AGENT_CONFIG"}
    result = subprocess.run(
        [sys.executable, "-m", "agent.cli", "status", "-c", write(), "--json"],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    assert result.returncode == Exit.NOT_RUNNING
    assert json.loads(result.stdout)["code"] == "not-running"
    assert result.stderr == ""


def test_an_arm_process_that_a_killed_agent_left_behind_does_not_prevent_the_next_agent(
    write: Write, ports: tuple[Path, Path], short_dir: Path
) -> None:
    config = load(write())
    config.paths.run.mkdir(parents=True)
    with other_process(ports[0]) as pid:
        assert [finding.is_error for finding in check_ports(config, own_pids(config))] == [True, False]
        with Arm(config.paths.arm_ctl, [None], pid=pid):
            assert [finding.is_error for finding in check_ports(config, own_pids(config))] == [False, False]


def test_the_ports_of_the_running_agent_are_its_own(cli: Cli, write: Write, ports: tuple[Path, Path]) -> None:
    file = write()
    socket = load(file).paths.agent_socket
    with other_process(ports[0]) as pid, Agent(socket, {"status": {"children": {"arm": {"pid": pid}}}}):
        assert cli("check-config", file).code == Exit.DONE
