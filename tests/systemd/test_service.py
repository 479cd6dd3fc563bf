"""What a station does as a service of a real systemd, with the arm on the other end of a cable.

`bench.live` is the arm's side: it keeps its power whatever happens to the machine.
"""

import json
import re
import time
from pathlib import Path

import pytest

from agent import links, station
from agent.messages import ArmQuery, ArmReply, ArmReport
from agent.supervisor import TERMINATE_S
from agent.transport import CommandClient
from tests.systemd.bench import PYTHON, READY_S, STATION, UNIT, Bench
from tests.systemd.machine import wait_for

pytestmark = [pytest.mark.booted, pytest.mark.slow, pytest.mark.timeout(900)]  # the first waits for debootstrap

STILL_DEG = 1.0
"""Two goals this close are the same pose: rounding to encoder counts, and what a joint sags under its load."""

EXPOSURE_MAX = 3.0
SECURE_UNIT = f"so-agent-secure@{STATION}.service"
FOLDERS = (f"/var/lib/so-agent/{STATION}", f"/var/cache/so-agent/{STATION}", f"/run/so-agent/{STATION}")


def hold_high(bench: Bench) -> dict[int, float]:
    """The arm in the air, held, with its operator's hands off. Returns its goals."""
    bench.teleop()
    bench.live.inject(operator="pause")
    bench.client.call("hold")
    bench.wait_mode("hold")
    return bench.goals()


def assert_same_pose(before: dict[int, float], after: dict[int, float]) -> None:
    assert {servo: after[servo] for servo in before if abs(after[servo] - before[servo]) > STILL_DEG} == {}


def arm_report(bench: Bench) -> ArmReport:
    """From the arm process itself, whether or not there is an agent."""
    client: CommandClient[ArmReport] = CommandClient(bench.machine.path(f"{FOLDERS[2]}/arm.ctl"), ArmReply)
    return client.ask(ArmQuery(), 2.0)


def arm_of(bench: Bench) -> int | None:
    """The arm process that the agent knows."""
    return ((bench.status() or {}).get("arm") or {}).get("pid")


def processes(bench: Bench) -> list[int]:
    """User ids of everything in the unit's control group."""
    group = bench.machine.show(UNIT, "ControlGroup")
    folder = bench.machine.path(f"/sys/fs/cgroup{group}")
    pids = [pid for file in folder.rglob("cgroup.procs") for pid in file.read_text().split()] if group else []
    return [Path(f"/proc/{pid}").stat().st_uid for pid in pids]


# --- the units as such ---


def test_systemd_has_no_complaint_about_the_units(installed: Bench) -> None:
    """It exits with 0 even for keys that it does not know; what it says is what counts."""
    verified = installed.machine.run("systemd-analyze", "verify", UNIT, SECURE_UNIT, check=False)
    assert (verified.stdout, verified.stderr, verified.returncode) == ("", "", 0)


# Another instance than the one that runs here: what was installed, without what this bench may have had to add.
@pytest.mark.parametrize("unit", ["so-agent@other.service", "so-agent-secure@other.service"])
def test_the_service_is_little_exposed_although_it_has_its_devices(installed: Bench, unit: str) -> None:
    analysed = installed.machine.run("systemd-analyze", "security", "--no-pager", unit, check=False).stdout
    overall = re.search(r"Overall exposure level for \S+: ([\d.]+)", analysed)
    assert overall
    assert float(overall[1]) <= EXPOSURE_MAX, analysed
    devices = installed.machine.show(unit, "DeviceAllow")
    assert all(kind in devices for kind in ("char-ttyACM rw", "char-ttyUSB rw", "char-video4linux rw"))


def test_only_serial_ports_and_cameras_can_be_opened(bench: Bench) -> None:
    """A root process put into the service's control group: the kernel refuses it all the same."""
    group = bench.machine.run("cat", f"/proc/{bench.main_pid()}/cgroup").stdout
    path = next(line.removeprefix("0::") for line in group.splitlines() if line.startswith("0::"))
    probe = f"""
        mknod /dev/probe-loop c 10 237
        echo $$ > '/sys/fs/cgroup{path}/cgroup.procs' || exit 1
        (: < /dev/probe-loop) 2>/dev/null && echo "loop control opened"
        (: < /dev/null) && (: < $(readlink /dev/serial/by-id/usb-follower)) && echo "port opened"
        rm /dev/probe-loop
    """
    assert bench.machine.run("sh", "-c", probe, check=False).stdout.splitlines() == ["port opened"]


def test_the_time_to_stop_is_enough_for_the_slowest_orderly_end(installed: Bench) -> None:
    most_s = (
        station.COMMIT_AND_EXIT_S  # the session
        + links.POLICY_ANSWER_S + station.COMMIT_AND_EXIT_S
        + links.RECORDER_ANSWER_S + station.COMMIT_AND_EXIT_S
        + links.ARM_ANSWER_S + station.PARK_AND_EXIT_S
        + TERMINATE_S
    )  # fmt: skip
    configured = installed.machine.show(UNIT, "TimeoutStopUSec")
    minutes, seconds = re.fullmatch(r"(?:(\d+)min)? ?(?:(\d+)s)?", configured).groups("0")  # type: ignore[union-attr]
    assert int(minutes) * 60 + int(seconds) > most_s


# --- running ---


def test_the_service_is_ready_when_the_arm_is_known(bench: Bench) -> None:
    assert bench.machine.show(UNIT, "Result") == "success"
    assert bench.machine.show(UNIT, "StatusText").startswith("idle:")
    own = int(bench.machine.run("id", "--user", "so-agent").stdout)
    assert set(processes(bench)) == {own}
    status = bench.status()
    assert status
    assert status["station"] == STATION
    assert status["arm"]["bus_connected"]


def test_the_control_loop_may_run_in_real_time(bench: Bench) -> None:
    assert bench.machine.show("so-agent@other.service", "LimitRTPRIO") == "20"
    loop = arm_report(bench).loop
    assert loop
    assert loop.scheduling == "SCHED_FIFO 10"
    if not bench.may_raise_limits():
        pytest.skip("real time works in the sandbox, but LimitRTPRIO= was not tested: CAP_SYS_RESOURCE is missing here")


def test_the_arm_stays_under_control_when_the_agent_is_killed(bench: Bench) -> None:
    """The arm process lives on, and hands the arm over to the next agent without a jerk."""
    before = hold_high(bench)
    arm_pid = arm_report(bench).pid
    old = bench.main_pid()
    bench.machine.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", UNIT)
    wait_for("the agent is dead", lambda: bench.main_pid() != old, 5.0)
    assert arm_report(bench).pid == arm_pid
    torque: list[bool] = []

    def ready() -> bool:
        torque.extend(bench.torque())
        return bench.machine.show(UNIT, "ActiveState") == "active" and bench.main_pid() not in (0, old)

    wait_for("the next agent is ready", ready, READY_S, bench.why)
    wait_for("it has taken the arm over", lambda: arm_of(bench) not in (None, arm_pid), READY_S, bench.why)
    bench.wait_mode("hold")
    assert all(torque)
    assert all(bench.torque())
    assert_same_pose(before, bench.goals())
    assert bench.machine.show(UNIT, "NRestarts") == "1"


def test_an_agent_that_hangs_is_ended_and_replaced_and_the_arm_does_not_notice(bench: Bench) -> None:
    before = hold_high(bench)
    old = bench.main_pid()
    began = time.monotonic()
    bench.machine.run("systemctl", "kill", "--kill-who=main", "--signal=STOP", UNIT)
    wait_for("the arm notices that nobody is there", lambda: arm_report(bench).supervisor_lost, 10.0)
    arm_pid = arm_report(bench).pid
    bench.wait_active(other_than=old)
    took_s = time.monotonic() - began
    wait_for("it has taken the arm over", lambda: arm_of(bench) not in (None, arm_pid), READY_S, bench.why)
    bench.wait_mode("hold")
    assert all(bench.torque())
    assert_same_pose(before, bench.goals())
    journal = bench.machine.journal("--unit", UNIT, "--lines=60")
    assert "Watchdog timeout" in journal
    assert "Fatal Python error: Aborted" in journal  # and where: the traceback follows
    assert took_s < 15 + READY_S


def test_a_stop_keeps_the_episode_parks_the_arm_and_lets_go(bench: Bench) -> None:
    bench.teleop()
    before = len(bench.episodes())
    bench.record(2.0)
    began = time.monotonic()
    bench.machine.run("systemctl", "stop", UNIT)
    took_s = time.monotonic() - began
    assert bench.machine.show(UNIT, "Result") == "success"
    assert bench.machine.show(UNIT, "ExecMainStatus") == "0"
    assert took_s < 40
    assert not any(bench.torque())
    assert_same_pose(parked(bench), bench.goals())
    assert processes(bench) == []
    bench.machine.run("systemctl", "start", UNIT)
    bench.wait_recorder()
    episodes = bench.episodes()
    assert len(episodes) == before + 1
    assert episodes[-1]["salvaged"] is False
    assert episodes[-1]["frames"] >= 2.0 * 15


def parked(bench: Bench) -> dict[int, float]:
    """The goals of the park pose: what the arm process parked with in an earlier test, or now."""
    pose = bench.live.config.safety.park
    from agent.robot.calibration import Scale, joints, load

    scale = Scale(load(bench.live.config.paths.follower_calibration))
    counts = scale.to_counts(joints(list(pose.model_dump().values())))
    return {servo: value * 360 / 4096 for servo, value in enumerate(counts.values(), start=1)}


def test_when_everything_is_killed_the_arm_is_held_and_taken_over(bench: Bench) -> None:
    bench.teleop()
    episodes = len(bench.episodes())
    bench.record(2.5)
    old = bench.main_pid()
    bench.machine.run("systemctl", "kill", "--kill-who=all", "--signal=KILL", UNIT)
    wait_for("all of it is dead", lambda: bench.main_pid() != old, 5.0)
    before = bench.goals()
    assert all(bench.torque())
    bench.wait_active(other_than=old)
    status = bench.wait_mode("hold")
    assert "holding where it was" in status["reason"]
    assert all(bench.torque())
    assert_same_pose(before, bench.goals())
    assert "The servos hold the arm by themselves" in bench.machine.journal("--unit", UNIT, "--lines=40")
    bench.wait_recorder()
    salvaged = bench.episodes()[episodes:]
    assert [episode["salvaged"] for episode in salvaged] == [True]
    assert salvaged[0]["frames"] >= 15


def test_a_station_that_was_given_up_is_parked_and_released(bench: Bench) -> None:
    """systemd starts nothing again after so many failures; somebody has to mind an arm that is in the air."""
    limit = "[Unit]\nStartLimitBurst=1\n"
    soon = "[Service]\nEnvironment=SO_AGENT__SAFETY__HOLD_PARK_AFTER_S=5\n"
    for unit, text in ((UNIT, limit), (SECURE_UNIT, soon)):
        folder = bench.machine.path(f"/run/systemd/system/{unit}.d")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "test.conf").write_text(text)
    bench.machine.run("systemctl", "daemon-reload")
    try:
        bench.machine.run("systemctl", "restart", UNIT)  # counts as the one start that is allowed
        bench.wait_recorder()
        before = hold_high(bench)
        bench.machine.run("systemctl", "kill", "--kill-who=all", "--signal=KILL", UNIT)
        wait_for("it is given up", lambda: bench.machine.show(UNIT, "ActiveState") == "failed", 30.0, bench.why)
        wait_for("the arm is minded", lambda: bench.machine.show(SECURE_UNIT, "ActiveState") == "active", 30.0)
        assert all(bench.torque())
        assert_same_pose(before, bench.goals())
        wait_for("the arm is released", lambda: not any(bench.torque()), 60.0, bench.why)
        assert_same_pose(parked(bench), bench.goals())
        wait_for("nobody is left", lambda: bench.machine.show(SECURE_UNIT, "ActiveState") == "inactive", 10.0)
        assert bench.machine.show(SECURE_UNIT, "Result") == "success"
    finally:
        bench.machine.run("rm", "-r", *(f"/run/systemd/system/{unit}.d" for unit in (UNIT, SECURE_UNIT)))
        bench.machine.run("systemctl", "daemon-reload")


def test_a_reboot_parks_the_arm_and_the_station_is_back_by_itself(bench: Bench) -> None:
    bench.teleop()
    before = len(bench.episodes())
    bench.record(1.0)
    bench.machine.reboot()
    assert not any(bench.torque())
    bench.wait_active()
    bench.wait_mode("idle")
    bench.wait_recorder()
    episodes = bench.episodes()
    assert [episode["salvaged"] for episode in episodes[before:]] == [False]


def test_an_arm_that_was_held_when_the_power_went_is_adopted_at_the_next_boot(bench: Bench) -> None:
    before = hold_high(bench)
    bench.machine.cut_power()
    assert all(bench.torque())
    bench.machine.boot()
    bench.wait_active()
    status = bench.wait_mode("hold")
    assert "holding where it was" in status["reason"]
    assert all(bench.torque())
    assert_same_pose(before, bench.goals())


def test_lines_in_the_journal_have_the_level_that_the_agent_gave_them(bench: Bench) -> None:
    levels = {"7": "debug", "6": "info", "4": "warning", "3": "error", "2": "critical"}
    lines = [json.loads(line) for line in bench.machine.journal("--unit", UNIT, "--output=json").splitlines()]
    seen = set()
    for line in lines:
        if isinstance(line["MESSAGE"], str) and line["MESSAGE"].startswith("{"):
            message = json.loads(line["MESSAGE"])
            if "level" in message:
                assert levels[line["PRIORITY"]] == message["level"], line
                seen.add(message["level"])
    assert {"info", "warning"} <= seen


def test_nothing_is_written_outside_of_its_folders(bench: Bench) -> None:
    """After all of the above. Everywhere on the machine, by owner; and the kernel would refuse it, too."""
    places = ("/", "/run", "/tmp", "/var/tmp", "/dev", "/dev/shm")
    found = bench.machine.run("find", *places, "-xdev", "-user", "so-agent", "-print", check=False).stdout.split()
    assert [path for path in found if not path.startswith(FOLDERS)] == []
    assert any(path.startswith(FOLDERS[0]) for path in found)
    # Root itself cannot from where the service is: what it writes to a hidden home is gone with the service.
    tried = ("/etc/x", "/var/lib/x", "/usr/x", "/root/x", "/opt/x")
    probe = f"import pathlib\nfor p in {tried}:\n try: pathlib.Path(p).write_text('')\n except OSError: pass"
    bench.machine.run("nsenter", f"--target={bench.main_pid()}", "--mount", "--", PYTHON, "-c", probe)
    assert [path for path in tried if bench.machine.path(path).exists()] == []


def test_secrets_reach_the_service_and_nobody_else(bench: Bench) -> None:
    folder = Path("/etc/so-agent/credentials") / STATION
    bench.machine.path(folder / "broker-password").write_text("correct horse")
    bench.machine.path(folder / "broker-password").chmod(0o600)
    bench.so_agent("install", "-c", f"/etc/so-agent/{STATION}.yaml", "--yes")
    bench.machine.run("systemctl", "restart", UNIT)
    bench.wait_active()
    environment = bench.machine.run("cat", f"/proc/{bench.main_pid()}/environ").stdout.split("\0")
    shown = next(word.partition("=")[2] for word in environment if word.startswith("CREDENTIALS_DIRECTORY="))
    as_service = ["nsenter", f"--target={bench.main_pid()}", "--mount", "--"]
    assert bench.machine.run(*as_service, "cat", f"{shown}/broker-password").stdout == "correct horse"
    other = bench.machine.run(*as_service, "su", "nobody", "-s", "/bin/cat", f"{shown}/broker-password", check=False)
    assert other.returncode != 0


MEMBER = """
import grp, os, sys
from pathlib import Path
from agent.api.local import Client
from agent.cli.locate import answers
from agent.errors import AgentError
os.setgroups([grp.getgrnam("so-agent").gr_gid] if sys.argv[1] == "member" else [])
os.setgid(65534)
os.setuid(65534)
folder = Path("/run/so-agent") / sys.argv[2]
try:
    mode = Client(folder / "agent.sock").call("hold")["mode"]
except AgentError as error:
    mode = str(error)
print(f"{mode}, {'stop' if answers(folder / 'arm.ctl') else 'no stop'}")
"""


def test_members_of_the_group_may_operate_and_stop_the_arm_and_nobody_else(bench: Bench) -> None:
    """`answers` is what `so-agent estop` asks before it sends a stop to the arm process itself."""
    assert bench.machine.run(PYTHON, "-c", MEMBER, "member", STATION).stdout.strip() == "hold, stop"
    other = bench.machine.run(PYTHON, "-c", MEMBER, "other", STATION).stdout
    assert "Permission denied" in other
    assert "no stop" in other


CLOCK = "; ".join(
    (
        "from agent.api.mqtt.timekeeping import Timekeeping, from_kernel",
        "keeping = Timekeeping()",
        "keeping.look()",
        "print('kernel:', from_kernel(), 'all:', keeping.synchrony)",
    )
)

IN_ITS_SANDBOX = f"""
[Unit]
AssertPathExists=
OnFailure=
[Service]
Type=oneshot
WatchdogSec=0
Restart=no
ExecStartPre=
ExecStart=
ExecStart={PYTHON} -c "{CLOCK}"
ExecStop=
ExecStopPost=
"""


def test_the_service_can_tell_whether_its_clock_is_right(bench: Bench) -> None:
    """ProtectClock= forbids the system call to those who only ask, too."""
    drop_in = "/run/systemd/system/so-agent@clock.service.d"
    folder = bench.machine.path(drop_in)
    folder.mkdir(parents=True)
    (folder / "50-ask.conf").write_text(IN_ITS_SANDBOX)
    bench.machine.run("systemctl", "daemon-reload")
    try:
        bench.machine.run("systemctl", "start", "so-agent@clock.service")
        said = bench.machine.journal("--unit", "so-agent@clock.service")
    finally:
        places = [f"{place}/so-agent/clock" for place in ("/var/lib", "/var/cache", "/run")]
        bench.machine.run("rm", "-rf", drop_in, *places)
        bench.machine.run("systemctl", "daemon-reload")
    assert "kernel: None" in said
    assert "all: Synchrony(" in said
    assert "cannot be told" not in said


def test_uninstalling_parks_the_arm_and_keeps_what_people_made(bench: Bench) -> None:
    hold_high(bench)
    episodes = len(bench.episodes())
    bench.so_agent("uninstall", "--yes")
    assert not any(bench.torque())
    assert_same_pose(parked(bench), bench.goals())
    folders = ("/etc/systemd/system", "/etc/udev", "/etc/sysusers.d")
    left = bench.machine.run("find", *folders, "-path", "*so-agent*", "-not", "-type", "d").stdout.split()
    assert [path for path in left if not path.endswith("/bench.conf")] == []  # an administrator's own drop-in
    assert bench.machine.path(f"/etc/so-agent/{STATION}.yaml").exists()
    bench.so_agent("install", "-c", f"/etc/so-agent/{STATION}.yaml", "--yes")
    bench.wait_active()
    assert len(bench.episodes()) == episodes
