"""The server side of a fleet as a service, and a station that is a service in it."""

import json
import re
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agent.fl import shelter
from agent.fl.synthetic import drawn
from tests.station.live import ROOT, free_ports
from tests.systemd.bench import STATION, Bench
from tests.systemd.bench import UNIT as STATION_UNIT
from tests.systemd.machine import SHARED, wait_for

pytestmark = [pytest.mark.booted, pytest.mark.slow, pytest.mark.timeout(900)]  # the first waits for debootstrap

UNIT = "so-fleet.service"
FOLDER = "/var/lib/so-fleet"
EXPOSURE_MAX = 3.0
POLICY = "demo-reach"
DATASET = "drawn"
RUN = "booted"

JOIN_S = 120.0
ROUND_S = 300.0
"""A trainer's imports at the lowest priority, beside an arm that keeps its rate."""


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def port(installed: Bench) -> int:
    """Where stations connect to, once the service is started, which nobody has done yet."""
    machine = installed.machine
    (port,) = free_ports(1)
    installed.so_agent("install", "--fleet", FOLDER, "--no-start", "--yes")
    installed.so_agent("fleet", "init", FOLDER, "--host", "localhost")
    machine.run("chown", "-R", "so-fleet:", FOLDER)
    drop_in = machine.path(f"/run/systemd/system/{UNIT}.d")
    drop_in.mkdir(parents=True)
    (drop_in / "test.conf").write_text(f"[Service]\nEnvironment=SO_FLEET_BIND=127.0.0.1:{port}\n")
    machine.run("systemctl", "daemon-reload")
    return port


@pytest.fixture
def fleet(installed: Bench, port: int) -> Iterator[int]:
    """Served; the port."""
    machine = installed.machine
    machine.run("systemctl", "start", UNIT)
    wait_for("stations can connect", lambda: listens(port), 120.0, lambda: machine.journal("--unit", UNIT))
    yield port
    machine.run("systemctl", "stop", UNIT)


def test_systemd_has_no_complaint_about_the_unit_and_it_is_little_exposed(installed: Bench, port: int) -> None:
    machine = installed.machine
    verified = machine.run("systemd-analyze", "verify", UNIT, check=False)
    assert (verified.stdout, verified.stderr, verified.returncode) == ("", "", 0)
    analysed = machine.run("systemd-analyze", "security", "--no-pager", UNIT, check=False).stdout
    overall = re.search(r"Overall exposure level for \S+: ([\d.]+)", analysed)
    assert overall
    assert float(overall[1]) <= EXPOSURE_MAX, analysed


def test_a_station_learns_as_a_service_and_lets_its_operator_in(bench: Bench, fleet: int) -> None:
    """When teleoperation starts the trainer stands still at once, and what it had done counts."""
    machine, station = bench.machine, bench.client
    shutil.copytree(drawn(bench.folder / "drawn", 12), bench.shared / DATASET)
    _put(bench, SHARED / DATASET, f"/var/lib/so-agent/{STATION}/datasets/{DATASET}", "so-agent")
    for folder, owner in ((f"/var/lib/so-agent/{STATION}", "so-agent"), (FOLDER, "so-fleet")):
        _put(bench, ROOT / "policies" / POLICY, f"{folder}/policies/{POLICY}", owner)

    def federation() -> dict[str, Any]:
        return station.call("fl.status", timeout_s=10.0)

    authority = machine.run("cat", f"{FOLDER}/ca.crt").stdout
    made = station.call("fl.enroll", {"superlink": f"127.0.0.1:{fleet}", "ca": authority})
    (bench.shared / "bench.pub").write_text(made["public_key"])
    bench.so_agent("fleet", "add-station", "bench", "--key", SHARED / "bench.pub", "--fleet", FOLDER)
    station.call("fl.consent", {"dataset": DATASET, "on": True})
    try:
        numbers = "num-server-rounds=2 local-steps=2000 batch-size=2 min-available-nodes=1 fraction-evaluate=0.0"
        words = ("run", "--name", RUN, "--policy", POLICY, "-r", numbers, "--fleet", FOLDER)
        bench.so_agent("fleet", *words)

        def at_a_step() -> bool:
            return bool((federation().get("progress") or {}).get("step"))

        wait_for("it learns", at_a_step, JOIN_S + ROUND_S, lambda: json.dumps(federation(), indent=1) + bench.why())
        inside = federation()["isolation"]
        assert inside["by"] == "control group"
        # As much of Landlock as this kernel has: the service's filter lets its system calls through.
        assert inside["trainer"] == {
            "user": "so-agent", "landlock": shelter.landlock(), "devices": [], "problem": "",
        }  # fmt: skip
        group = machine.path(f"/sys/fs/cgroup{machine.show(STATION_UNIT, 'ControlGroup')}")
        (freezer,) = group.rglob("trainer/cgroup.freeze")
        assert freezer.read_text() == "0\n"
        bench.live.inject(operator="pause")
        with ThreadPoolExecutor(1) as operator:
            started = operator.submit(station.call, "teleop.start")
            # For two seconds from the request on, however late its answer is.
            wait_for("it stands still", lambda: freezer.read_text() == "1\n", 10.0)
            started.result()
        bench.wait_mode("teleop", "hold")
        wait_for("it has left", lambda: federation()["state"] == "off", 60.0, lambda: json.dumps(federation()))
        station.call("hold")
        station.call("release")
        wait_for("the round is over", lambda: 1 in _rounds(bench), 60.0, lambda: str(_rounds(bench)))
        first = _rounds(bench)[1]
        assert (first["used"], first["partial"]) == (1, 1)
        assert 0 < first["rows"] < 2 * 2000
    finally:
        bench.so_agent("fleet", "stop", RUN, "--fleet", FOLDER, check=False)
        station.call("fl.leave")
    owners = machine.run("find", FOLDER, "-not", "-user", "so-fleet").stdout
    assert owners == ""  # although root has begun the run


def test_it_runs_as_a_user_of_its_own_and_leaves_nothing_behind(installed: Bench, fleet: int) -> None:
    machine = installed.machine
    owner = machine.run("stat", "--format=%U", f"/proc/{machine.show(UNIT, 'MainPID')}").stdout.strip()
    assert owner == "so-fleet"
    machine.run("systemctl", "stop", UNIT)
    assert machine.show(UNIT, "Result") == "success"
    assert not listens(fleet)
    found = machine.run("find", "/", "/run", "/tmp", "/var/tmp", "-xdev", "-user", "so-fleet", check=False).stdout
    assert [path for path in found.split() if not path.startswith((FOLDER, "/var/cache/so-fleet"))] == []


def _put(bench: Bench, source: Path, target: str, owner: str) -> None:
    bench.machine.run("mkdir", "-p", target.rpartition("/")[0])
    bench.machine.run("cp", "-r", source, target)
    bench.machine.run("chown", "-R", f"{owner}:", target.rpartition("/")[0])


def _rounds(bench: Bench) -> dict[int, dict[str, Any]]:
    found = json.loads(bench.so_agent("fleet", "status", "--fleet", FOLDER, "--json").stdout)
    (run,) = [each for each in found["runs"] if each["run"] == RUN]
    return {each["round"]: each for each in run["rounds"]}
