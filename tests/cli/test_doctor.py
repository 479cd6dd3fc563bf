"""`doctor` says what a machine lacks and what to do about it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from agent.cli.check import filesystem
from agent.cli.finding import Finding, Level, worst
from agent.cli.ports import holders
from agent.errors import Exit
from tests.cli.conftest import Cli


def test_doctor_covers_the_machine(cli: Cli) -> None:
    result = cli("doctor", "--json")
    findings = {finding["name"]: finding for finding in result.json["findings"]}
    assert {"Python", "lerobot", "torch", "serial ports", "cameras", "real time", "clock", "rendering", "agent"} <= set(
        findings
    )
    assert findings["lerobot"]["found"] == "0.6.1"
    assert all(finding["remedy"] for finding in findings.values() if finding["level"] in ("warning", "error"))
    assert result.code == (Exit.DONE if result.json["ok"] else Exit.DEVICE_FAULT)


def test_doctor_examines_the_named_station(cli: Cli, make_config: Any, short_dir: Path) -> None:
    file = short_dir / "station.yaml"
    file.write_text(make_config(cameras={}).model_dump_json())  # JSON is YAML
    result = cli("doctor", "-c", file)
    assert result.code == Exit.DEVICE_FAULT  # its ports do not exist
    assert "robot.follower.port" in result.out
    assert "does not exist" in result.out
    assert "so-agent calibrate --arm leader" in result.out
    assert "The agent does not run" in result.out


def test_doctor_sees_the_running_agent(cli: Cli, agent: Any) -> None:
    it = agent({"status": {}})
    assert "running, socket" in cli("doctor", "--socket", it.socket).out


def test_the_worst_finding_decides() -> None:
    findings = [Finding("a", Level.OK, ""), Finding("b", Level.WARNING, ""), Finding("c", Level.NOTE, "")]
    assert worst(findings) is Level.WARNING
    assert worst([]) is Level.OK


def test_the_filesystem_below_a_folder_is_known() -> None:
    assert filesystem(Path("/proc/self")) == "proc"


def test_the_program_behind_a_pseudo_terminal_is_not_taken_for_a_rival() -> None:
    code = "import os; m, s = os.openpty(); print(os.ttyname(s), flush=True); import sys; sys.stdin.read()"
    station = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert station.stdout
        port = Path(station.stdout.readline().decode().strip())
        assert holders(port) == []
        client = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; port = open(sys.argv[1], 'rb'); print('up', flush=True); sys.stdin.read()",
                port,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert client.stdout
            assert client.stdout.readline() == b"up\n"
            assert [holder.pid for holder in holders(port)] == [client.pid]
        finally:
            client.kill()
            client.wait()
    finally:
        station.kill()
        station.wait()
