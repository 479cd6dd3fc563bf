"""A fleet's folder: its authority, its certificate, and who may take part."""

import json
import os
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agent.cli.fleet import ROUNDS_SHOWN, _print_run, _short
from agent.errors import BadInput, NotRunning
from agent.fl import certificates, fleet_runs, station_key
from agent.fl.fleet import Fleet

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet.init(tmp_path / "fleet", "workshop", ("fleet.example.org", "192.0.2.7"))


def key(comment: str = "kitchen") -> str:
    return station_key.public_of(station_key.generate(), comment)


def test_the_certificate_is_for_its_hosts_and_for_loopback(fleet: Fleet) -> None:
    from cryptography import x509

    found = certificates.read_certificate(fleet.certificate)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"fleet.example.org", "localhost"}
    assert {str(each) for each in names.get_values_for_type(x509.IPAddress)} == {"192.0.2.7", "127.0.0.1", "::1"}
    context = ssl.create_default_context(cafile=str(fleet.authority))
    assert context.get_ca_certs()


def test_keys_are_for_their_owner_alone(fleet: Fleet) -> None:
    for path in (fleet.authority_key, fleet.key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(fleet.folder.stat().st_mode) == 0o700


def test_init_again_renews_the_certificate_and_keeps_the_authority(fleet: Fleet) -> None:
    authority, certificate = fleet.authority.read_bytes(), fleet.certificate.read_bytes()
    Fleet.init(fleet.folder, "workshop", ("new.example.org",))
    assert fleet.authority.read_bytes() == authority
    assert fleet.certificate.read_bytes() != certificate
    assert fleet.settings.hosts == ("new.example.org",)


def test_a_certificate_cannot_be_renewed_without_the_authoritys_key(fleet: Fleet) -> None:
    fleet.authority_key.unlink()
    with pytest.raises(BadInput, match="authority's key"):
        Fleet.init(fleet.folder, "workshop", ())


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("chapter one")
    with pytest.raises(BadInput, match="holds something else"):
        Fleet.init(tmp_path, "workshop", ())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_station_is_let_in_by_its_key(fleet: Fleet) -> None:
    line = key()
    member = fleet.add_station("kitchen", line)
    assert [each.name for each in fleet.members()] == ["kitchen"]
    assert fleet.add_station("kitchen", line) == member  # twice is once
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(fleet.stations / "kitchen.pub")], capture_output=True, text=True, check=False
    )
    if shown.returncode == 0:  # where OpenSSH is installed, it prints the same
        assert member.fingerprint in shown.stdout
    fleet.remove_station("kitchen")
    assert fleet.members() == []


@pytest.mark.parametrize(
    ("name", "line", "sentence"),
    [
        ("kitchen", "ssh-rsa AAAA", "no public key"),
        ("kitchen", "", "no public key"),
        ("kitchen", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIHNAk3p6gFKDxV0H3sqWJ8nZ0oX1zGZr0mC2rTgUZtq", "NIST"),
        ("../kitchen", "x", "cannot be a station's name"),
    ],
)
def test_what_is_no_key_or_no_name_is_refused(fleet: Fleet, name: str, line: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        fleet.add_station(name, line)
    assert fleet.members() == []


def test_two_stations_have_two_keys_and_two_names(fleet: Fleet) -> None:
    line = key()
    fleet.add_station("kitchen", line)
    with pytest.raises(BadInput, match="This key is kitchen's"):
        fleet.add_station("attic", line)
    with pytest.raises(BadInput, match="with another key"):
        fleet.add_station("kitchen", key())
    with pytest.raises(BadInput, match="There are kitchen"):
        fleet.remove_station("attic")


def test_a_key_file_that_cannot_be_read_is_named(fleet: Fleet) -> None:
    (fleet.stations / "odd.pub").write_bytes(b"\xff\xfe")
    assert fleet.members() == []
    assert "odd.pub" in fleet.problems()[0]


def test_what_is_no_fleet_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no fleet"):
        _ = Fleet(tmp_path).settings


def test_a_fleet_that_is_not_served_says_so(fleet: Fleet) -> None:
    with pytest.raises(NotRunning, match="is not being served"):
        fleet.serving()
    fleet.serving_file.write_text('{"pid": 1, "control": "127.0.0.1:9", "address": "127.0.0.1:1"}')
    with pytest.raises(NotRunning, match="does not answer"):
        fleet.serving()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num-server-round": 5}, "num-server-round"),
        ({"learning-rate": 7}, "learning-rate"),
        ({"policy": "grasp"}, "There is no policy grasp to begin with"),
        ({"policy": "/nowhere/grasp"}, "There is no policy /nowhere/grasp"),
    ],
)
def test_a_run_that_cannot_begin_is_refused_before_it_is_submitted(
    fleet: Fleet, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        fleet_runs.check(fleet, settings)


def test_a_run_that_can_begin_is_not(fleet: Fleet) -> None:
    fleet_runs.check(fleet, {})  # the demo policy, which comes with the repository
    (fleet.policies / "grasp").mkdir()
    fleet_runs.check(fleet, {"policy": "grasp", "strategy": "fedprox", "num-server-rounds": 5})


def test_reasons_of_those_who_declined_are_told() -> None:
    assert _short({"busy": 2, "no policy": 1}) == "2 busy, 1 no policy"
    assert _short({}) == "0"


def test_of_a_long_run_the_last_rounds_are_shown() -> None:
    rounds = [{"round": number, "asked": 3, "used": 3, "adapter": "a"} for number in range(ROUNDS_SHOWN + 5)]
    run = {"run": "reach", "state": "under way", "details": "", "resumed": 0, "app": "0" * 64, "rounds": rounds}
    console = Console(width=200)
    with console.capture() as shown:
        _print_run(console, run)
    text = shown.get()
    assert "5 earlier rounds: --json" in text
    first = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert "24" in first
    assert "5" in first
    assert "4" not in first


def test_a_run_that_is_over_is_not_stopped(fleet: Fleet) -> None:
    (fleet.runs / "reach").mkdir()
    fleet_runs._write(fleet, fleet_runs.Request("reach", "0" * 64, {}, 1, over="completed"))
    code, refused = so_agent("fleet", "stop", "reach", folder=fleet.folder)
    assert code == 2
    assert "is over: completed" in refused["message"]


@pytest.mark.parametrize("words", [("run", "--name", "reach", "--policy", "grasp"), ("stop", "reach"), ("status",)])
def test_a_folder_that_is_no_fleet_is_not_taken_for_one_that_is_away(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, refused = so_agent("fleet", *words, folder=tmp_path)
    assert code == 2
    assert "is no fleet" in refused["message"]
    assert "--fleet" in refused["hint"]


def so_agent(*words: str, folder: Path) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli", *words, "--json"], capture_output=True, text=True, cwd=ROOT, timeout=60,
        env={"PATH": "/usr/bin:/bin", "SO_AGENT_FLEET_DIR": str(folder), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)


def test_the_commands_on_a_fleet_that_is_not_served(tmp_path: Path) -> None:
    folder = tmp_path / "workshop"
    code, made = so_agent("fleet", "init", str(folder), "--host", "fleet.example.org", folder=folder)
    assert code == 0
    assert made["fleet"] == "workshop"
    public = tmp_path / "kitchen.pub"
    public.write_text(key())
    code, member = so_agent("fleet", "add-station", "kitchen", "--key", str(public), folder=folder)
    assert code == 0
    assert member["fingerprint"].startswith("SHA256:")
    code, status = so_agent("fleet", "status", folder=folder)
    assert code == 0
    assert status["serving"] is None
    assert "is not being served" in status["problem"]
    assert [each["station"] for each in status["stations"]] == ["kitchen"]
    code, refused = so_agent("fleet", "run", "--name", "reach", folder=folder)
    assert code == 4
    assert refused["code"] == "not-running"
    code, refused = so_agent("fleet", "run", "--name", "reach", "-r", "num-server-round=5", folder=folder)
    assert code == 2
    assert "num-server-round" in refused["message"]
    code, refused = so_agent("fleet", "serve", "--bind", "nowhere", folder=folder)
    assert code == 2
    code, _ = so_agent("fleet", "remove-station", "kitchen", folder=folder)
    assert code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_writes_as_the_user_whose_fleet_it_is(fleet: Fleet, tmp_path: Path) -> None:
    """Its server would not be able to read what is root's. What only root can read, it still reads."""
    nobody = 65534
    for path in (fleet.folder, *fleet.folder.rglob("*")):
        os.chown(path, nobody, nobody)
    public = tmp_path / "kitchen.pub"
    public.write_text(key())
    public.chmod(0o600)
    code, said = so_agent("fleet", "add-station", "kitchen", "--key", str(public), folder=fleet.folder)
    assert code == 0, said
    assert (fleet.stations / "kitchen.pub").is_file()
    assert {path.stat().st_uid for path in (fleet.folder, *fleet.folder.rglob("*"))} == {nobody}
