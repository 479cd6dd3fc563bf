"""The server side of a fleet as a service."""

import re
import socket

import pytest

from tests.station.live import free_ports
from tests.systemd.bench import Bench
from tests.systemd.machine import wait_for

pytestmark = [pytest.mark.booted, pytest.mark.slow, pytest.mark.timeout(900)]  # the first waits for debootstrap

UNIT = "so-fleet.service"
FOLDER = "/var/lib/so-fleet"
EXPOSURE_MAX = 3.0


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_fleet_is_served_by_a_user_of_its_own_who_can_do_little_else(installed: Bench) -> None:
    machine = installed.machine
    (port,) = free_ports(1)
    installed.so_agent("install", "--fleet", FOLDER, "--no-start", "--yes")
    installed.so_agent("fleet", "init", FOLDER, "--host", "localhost")
    machine.run("chown", "-R", "so-fleet:", FOLDER)
    drop_in = machine.path(f"/run/systemd/system/{UNIT}.d")
    drop_in.mkdir(parents=True)
    (drop_in / "test.conf").write_text(f"[Service]\nEnvironment=SO_FLEET_BIND=127.0.0.1:{port}\n")
    machine.run("systemctl", "daemon-reload")

    verified = machine.run("systemd-analyze", "verify", UNIT, check=False)
    assert (verified.stdout, verified.stderr, verified.returncode) == ("", "", 0)
    analysed = machine.run("systemd-analyze", "security", "--no-pager", UNIT, check=False).stdout
    overall = re.search(r"Overall exposure level for \S+: ([\d.]+)", analysed)
    assert overall
    assert float(overall[1]) <= EXPOSURE_MAX, analysed

    machine.run("systemctl", "start", UNIT)
    wait_for("stations can connect", lambda: listens(port), 120.0, lambda: machine.journal("--unit", UNIT))
    owner = machine.run("stat", "--format=%U", f"/proc/{machine.show(UNIT, 'MainPID')}").stdout.strip()
    assert owner == "so-fleet"
    machine.run("systemctl", "stop", UNIT)
    assert machine.show(UNIT, "Result") == "success"
    assert not listens(port)
    found = machine.run("find", "/", "/run", "/tmp", "/var/tmp", "-xdev", "-user", "so-fleet", check=False).stdout
    assert [path for path in found.split() if not path.startswith((FOLDER, "/var/cache/so-fleet"))] == []
