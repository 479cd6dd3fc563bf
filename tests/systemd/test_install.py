"""Installing into the image of a machine: what is written, what is kept, and that doing it again changes nothing."""

import contextlib
import io
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cli import execute
from agent.config import load
from agent.install.environment import Environment
from agent.install.station_file import adapt
from tests.station.live import ROOT

NAME = "kitchen"


@pytest.fixture
def station(tmp_path: Path) -> Path:
    """A station's configuration as a person has it, with a calibration of the follower."""
    text = (ROOT / "configs/so101/station.yaml").read_text()
    text = text.replace("station: my-so101  ", f"station: {NAME}").replace(
        "~/.local/state/so-agent/so101", f"{tmp_path}/s"
    )
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    calibration = tmp_path / "s/calibration/robots/so_follower/follower.json"
    calibration.parent.mkdir(parents=True)
    calibration.write_text("{}")
    return file


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Just enough of a file system for systemd-sysusers to add a user to."""
    if not shutil.which("systemd-sysusers"):
        pytest.skip("systemd-sysusers is not installed: apt-get install systemd")
    root = tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\ndialout:x:20:\nvideo:x:44:\n")
    return root


def so_agent(*words: str | Path, status: int = 0) -> dict[str, Any]:
    """The command line, in this process; what it answers to programs."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert execute([*map(str, words), "--json"]) == status, output.getvalue()
    answer: dict[str, Any] = json.loads(output.getvalue())
    return answer


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def states(answer: dict[str, Any]) -> set[str]:
    return {step["state"] for step in answer["plan"]}


def test_without_yes_a_plan_is_shown_and_nothing_changes(station: Path, image: Path) -> None:
    before = files(image)
    answer = so_agent("install", "-c", station, "--root", image)
    assert answer["applied"] is False
    assert states(answer) == {"create", "run"}
    assert files(image) == before


def test_installing_writes_what_the_plan_says_and_the_second_time_nothing(station: Path, image: Path) -> None:
    planned = so_agent("install", "-c", station, "--root", image)["plan"]
    assert so_agent("install", "-c", station, "--root", image, "--yes")["applied"] is True
    for step in planned:
        if step["state"] == "create":
            assert os.path.lexists(step["subject"].partition(" -> ")[0]), step
    assert "so-agent:x:" in (image / "etc/passwd").read_text()
    assert "so-agent" in (image / "etc/group").read_text().split("dialout:x:20:")[1].splitlines()[0]
    enabled = image / "etc/systemd/system/multi-user.target.wants" / f"so-agent@{NAME}.service"
    assert os.readlink(enabled) == "/etc/systemd/system/so-agent@.service"
    calibration = image / "var/lib/so-agent" / NAME / "calibration/robots/so_follower/follower.json"
    assert calibration.read_text() == "{}"
    before = files(image)
    again = so_agent("install", "-c", station, "--root", image, "--yes")
    assert again["applied"] is False
    assert states(again) == {"same"}
    assert files(image) == before


def test_the_configuration_keeps_its_comments_and_gets_the_folders_of_the_service(station: Path) -> None:
    adapted = adapt(station, load(station))
    theirs, ours = station.read_text().splitlines(), adapted.text.splitlines()
    different = [line for line in ours if line not in theirs]
    assert different == [
        f"state_dir: /var/lib/so-agent/{NAME}",
        f"run_dir: /run/so-agent/{NAME}",
    ]
    assert yaml.safe_load(adapted.text)["robot"]["calibration_dir"] == "{state_dir}/calibration"


def test_a_calibration_made_later_is_not_overwritten(station: Path, image: Path) -> None:
    so_agent("install", "-c", station, "--root", image, "--yes")
    calibration = image / "var/lib/so-agent" / NAME / "calibration/robots/so_follower/follower.json"
    calibration.write_text('{"later": 1}')
    so_agent("install", "-c", station, "--root", image, "--yes")
    assert calibration.read_text() == '{"later": 1}'


def test_a_changed_configuration_replaces_the_old_one_which_is_kept(station: Path, image: Path) -> None:
    so_agent("install", "-c", station, "--root", image, "--yes")
    installed = image / "etc/so-agent" / f"{NAME}.yaml"
    before = installed.read_text()
    station.write_text(station.read_text().replace("control_hz: 30", "control_hz: 60"))
    answer = so_agent("install", "-c", station, "--root", image, "--yes")
    assert [step["subject"] for step in answer["plan"] if step["state"] == "change"] == [str(installed)]
    assert load(installed).robot.control_hz == 60
    assert installed.with_name(f"{NAME}.yaml.before").read_text() == before


def test_secrets_are_named_to_the_unit_one_by_one(station: Path, image: Path) -> None:
    so_agent("install", "-c", station, "--root", image, "--yes")
    folder = image / "etc/so-agent/credentials" / NAME
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "station.key").write_text("x")
    so_agent("install", "-c", station, "--root", image, "--yes")
    drop_in = image / "etc/systemd/system" / f"so-agent@{NAME}.service.d/20-credentials.conf"
    assert f"LoadCredential=station.key:/etc/so-agent/credentials/{NAME}/station.key\n" in drop_in.read_text()
    (folder / "station.key").unlink()
    so_agent("install", "-c", station, "--root", image, "--yes")
    assert not drop_in.exists()


def test_two_stations_share_the_units_and_leave_one_by_one(station: Path, image: Path) -> None:
    so_agent("install", "-c", station, "--root", image, "--yes")
    other = station.with_name("other.yaml")
    other.write_text(station.read_text().replace(f"station: {NAME}", "station: garage"))
    answer = so_agent("install", "-c", other, "--root", image, "--yes")
    assert "same" in states(answer)
    so_agent("uninstall", "--station", "garage", "--root", image, "--yes")
    units = image / "etc/systemd/system"
    assert (units / "so-agent@.service").exists()
    assert [path.name for path in (units / "multi-user.target.wants").iterdir()] == [f"so-agent@{NAME}.service"]
    so_agent("uninstall", "--root", image, "--yes")
    assert [path for path in units.rglob("*") if not path.is_dir()] == []
    assert {path.name for path in (image / "etc/so-agent").iterdir()} == {f"{NAME}.yaml", "garage.yaml", "credentials"}


def test_a_station_that_is_not_installed_cannot_be_uninstalled(station: Path, image: Path) -> None:
    so_agent("install", "-c", station, "--root", image, "--yes")
    before = files(image)
    answer = so_agent("uninstall", "--station", "kitchne", "--root", image, "--yes", status=2)
    assert (answer["message"], answer["hint"]) == ("No station kitchne is installed here.", f"Installed are: {NAME}.")
    assert files(image) == before


def test_an_agent_in_a_terminal_is_not_robbed_of_its_arm(station: Path) -> None:
    at = load(station).paths.agent_socket
    at.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(at))
        agent.listen()
        answer = so_agent("install", "-c", station, status=3)
        assert "Ctrl-C" in answer["hint"]
        assert so_agent("install", "-c", station, "--no-start")["applied"] is False
    assert so_agent("install", "-c", station)["applied"] is False


def test_a_drop_in_of_an_administrator_stays(station: Path, image: Path) -> None:
    so_agent("install", "-c", station, "--root", image, "--yes")
    own = image / "etc/systemd/system/so-agent@.service.d/override.conf"
    own.write_text("[Service]\nMemoryMax=4G\n")
    so_agent("uninstall", "--root", image, "--yes")
    assert own.exists()


def test_what_the_service_could_not_see_is_said(station: Path, image: Path) -> None:
    text = station.read_text().replace("/dev/serial/by-id/usb-1a86_USB_Single_Serial_FOLLOWER-if00", "/dev/ttyACM0")
    station.write_text(text + "mqtt:\n  host: broker.example\n  tls:\n    ca: ~/ca.pem\n")
    notes = "\n".join(so_agent("install", "-c", station, "--root", image)["notes"])
    assert "mqtt.tls.ca" in notes
    assert "robot.follower.port is /dev/ttyACM0" in notes
    assert "Not there on the image" in notes


def test_folders_that_the_sandbox_hides_are_shown_to_the_service(tmp_path: Path) -> None:
    environment = Environment(Path("/home/me/so agent/.venv"), (Path("/home/me/so agent"), Path("/opt/python")))
    assert environment.hidden == (Path("/home/me/so agent"),)
    assert Environment.at(Path("/opt/so-agent")).hidden == ()
    here = Environment.here()
    assert here.missing(Path("/")) == ()
    assert not any(one != other and one.is_relative_to(other) for one in here.needs for other in here.needs)


def test_a_file_that_cannot_be_adapted_is_refused_with_what_to_do(station: Path, image: Path) -> None:
    values = yaml.safe_load(station.read_text())
    station.write_text(json.dumps(values))  # YAML, too, but on one line
    answer = so_agent("install", "-c", station, "--root", image, status=2)
    assert "run_dir" in answer["hint"]


def test_installing_the_server_of_a_fleet(image: Path) -> None:
    answer = so_agent("install", "--fleet", "/srv/fleet", "--root", image, "--yes")
    assert answer["applied"] is True
    assert "so-fleet:x:" in (image / "etc/passwd").read_text()
    drop_in = image / "etc/systemd/system/so-fleet.service.d/20-folder.conf"
    assert 'SO_AGENT_FLEET_DIR=/srv/fleet"' in drop_in.read_text()
    so_agent("uninstall", "--root", image, "--yes")
    assert [path for path in (image / "etc/systemd/system").rglob("*") if not path.is_dir()] == []
