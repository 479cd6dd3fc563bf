"""A machine with a station as its service, and the virtual arm on the other end of its cables.

The arm and its cameras run on this side: they keep their power when the machine is rebooted or cut from its own, as
arms do. Cameras are reached over the loopback network, which both sides share.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from agent.api.local import Client
from agent.errors import AgentError
from agent.install.environment import Environment
from tests.station.live import ROOT, LiveStation
from tests.systemd.machine import SHARED, Machine, wait_for
from tests.systemd.root import root

STATION: Final = "bench"
UNIT: Final = f"so-agent@{STATION}.service"
PYTHON: Final = Path(sys.prefix) / "bin/python"

READY_S: Final = 120.0
"""lerobot's imports on a busy machine; 6 s on an idle one."""

PORTS: Final = Path("/dev/serial/by-id")

REAL_TIME: Final = "[Service]\nCapabilityBoundingSet=CAP_SYS_NICE\nAmbientCapabilities=CAP_SYS_NICE\n"
"""Where limits cannot be raised, real time comes from a capability instead. Without it, on a busy machine, the arm
process is late by more than the ports' time-outs, and that is not what is tested here."""

CABLE: Final = """
[Unit]
Description=USB cable of the {arm}
DefaultDependencies=no
Before=so-agent@{station}.service
[Service]
ExecStart={python} {program} port {shared}/{arm}.sock {ports}/usb-{arm} dialout
Restart=always
[Install]
WantedBy=multi-user.target
"""


class Bench:
    """Everything on both ends. `machine` is up when `start` returns, and the station is installed on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.live = LiveStation(
            folder / "arm",
            cameras__front__width=320,
            cameras__front__height=240,
            cameras__front__fps=15,
            recording__fps=15,
            recording__min_free_gb=0.1,
        )
        self.shared = folder / "shared"
        self.shared.mkdir()
        shown = [*Environment.here().needs]
        if not any(ROOT.is_relative_to(path) for path in shown):
            shown.append(ROOT)
        self.machine = Machine(folder, root(), shown, self.shared)
        self._cables: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self.machine.mount()
        self.machine.boot()
        self.live.start_virtual()
        self._plug_in()
        self._write_config()

    def _plug_in(self) -> None:
        robot = self.live.config.robot
        assert robot.leader
        program = Path(__file__).with_name("cable.py")
        for arm, terminal in (("follower", robot.follower.port), ("leader", robot.leader.port)):
            argv = [sys.executable, program, "arm", self.shared / f"{arm}.sock", terminal]
            self._cables.append(subprocess.Popen(argv))
            wait_for("the cable is there", (self.shared / f"{arm}.sock").exists, 10.0)
            unit = CABLE.format(arm=arm, station=STATION, python=PYTHON, program=program, shared=SHARED, ports=PORTS)
            self.machine.path(f"/etc/systemd/system/cable-{arm}.service").write_text(unit)
        self.machine.run("systemctl", "daemon-reload")
        self.machine.run("systemctl", "enable", "--now", "cable-follower", "cable-leader")
        wait_for("the ports are there", lambda: self.machine.path(PORTS / "usb-leader").is_symlink(), 10.0)

    def _write_config(self) -> None:
        """As a person has it who ran the station from a terminal so far."""
        values = yaml.safe_load(self.live.file.read_text())
        values["station"] = STATION
        values["state_dir"] = "~/station"
        del values["cameras"]["wrist"]
        values["robot"]["follower"]["port"] = str(PORTS / "usb-follower")
        values["robot"]["leader"]["port"] = str(PORTS / "usb-leader")
        values["federation"] = {"idle_min": 0.0, "min_free_memory_gb": 0.5, "min_free_disk_gb": 0.1}  # once enrolled
        (self.shared / "station.yaml").write_text(yaml.safe_dump(values))
        calibration = self.live.config.robot.calibration_dir
        self.machine.run("cp", "-r", self._give(calibration), "/root/calibration")
        self.machine.run("mkdir", "/root/station")
        self.machine.run("mv", "/root/calibration", "/root/station/calibration")

    def _give(self, folder: Path) -> Path:
        subprocess.run(["cp", "-r", folder, self.shared], check=True)
        return SHARED / folder.name

    # --- the station on the machine ---

    def install(self) -> None:
        self.so_agent("install", "-c", SHARED / "station.yaml", "--yes", "--no-start")
        if not self.may_raise_limits():
            for unit in (UNIT, f"so-agent-secure@{STATION}.service"):
                folder = self.machine.path(f"/etc/systemd/system/{unit}.d")
                folder.mkdir(exist_ok=True)
                (folder / "bench.conf").write_text(REAL_TIME)
            self.machine.run("systemctl", "daemon-reload")
        self.machine.run("systemctl", "start", UNIT)
        self.wait_active()

    def may_raise_limits(self) -> bool:
        """Whether LimitRTPRIO= has an effect on this machine: CAP_SYS_RESOURCE, which containers may lack."""
        return self.machine.run("prlimit", "--rtprio=20:20", "true", check=False).returncode == 0

    def calm(self) -> None:
        """Running, idle, and with nothing wrong."""
        self.live.inject(clear=True, operator="resume")
        if self.machine.show(UNIT, "ActiveState") != "active":
            self.machine.run("systemctl", "reset-failed")
            self.machine.run("systemctl", "start", UNIT)
        self.machine.run("systemctl", "reset-failed", UNIT, check=False)  # counts its restarts anew, too
        self.wait_active()
        self.wait_recorder()
        status = self.status()
        assert status
        if status["mode"] in ("estop", "fault"):
            self.client.call("reset")
        if status["recording"]:
            self.client.call("record.discard")
        if status["mode"] != "idle":
            self.client.call("release")
        self.wait_mode("idle")

    def wait_recorder(self) -> None:
        """Until an episode can be recorded."""

        def ready() -> bool:
            status = self.status() or {}
            cameras = (status.get("cameras") or {}).values()
            streaming = cameras and all(camera["state"] == "streaming" for camera in cameras)
            return bool(streaming) and (status.get("recorder") or {}).get("state") == "ready"

        wait_for("the recorder is ready", ready, READY_S, self.why)

    def so_agent(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The command line, as root on the machine."""
        return self.machine.run("env", "HOME=/root", PYTHON, "-m", "agent.cli", *words, check=check)

    @property
    def client(self) -> Client:
        return Client(self.machine.path(f"/run/so-agent/{STATION}/agent.sock"))

    def status(self) -> dict[str, Any] | None:
        try:
            return self.client.call("status", timeout_s=5.0)
        except (AgentError, OSError):
            return None

    def main_pid(self) -> int:
        """Of the agent, as the machine numbers it."""
        return int(self.machine.show(UNIT, "MainPID"))

    def wait_active(self, other_than: int = 0, timeout_s: float = READY_S) -> int:
        """Until the unit is ready, with another main process than that one. Returns the main process."""

        def ready() -> bool:
            return self.machine.show(UNIT, "ActiveState") == "active" and self.main_pid() not in (0, other_than)

        wait_for(f"{UNIT} is ready", ready, timeout_s, self.why)
        return self.main_pid()

    def wait_mode(self, *modes: str, timeout_s: float = 20.0) -> dict[str, Any]:
        wait_for(f"mode {modes}", lambda: (self.status() or {}).get("mode") in modes, timeout_s, self.why)
        status = self.status()
        assert status
        return status

    def why(self) -> str:
        status = self.machine.run("systemctl", "status", "--no-pager", "--lines=0", UNIT, check=False).stdout
        return f"{status}\n{self.machine.journal('--unit', UNIT, '--lines=15')}"

    def teleop(self) -> None:
        """The operator keeps still until the follower has reached the leader, then works."""
        self.live.inject(operator="pause")
        for _ in range(5):
            self.client.call("teleop.start")
            if self.wait_mode("teleop", "hold", timeout_s=40.0)["mode"] == "teleop":
                break
        self.wait_mode("teleop", timeout_s=1.0)
        self.live.inject(operator="resume")

    def record(self, seconds: float) -> None:
        """Begin an episode, and let it go on for so long at least."""
        self.client.call("record.start", {"task": "push the cube", "episodes": 1, "episode_s": 60.0, "reset_s": 0.0})

        def long_enough() -> bool:
            return ((self.status() or {}).get("recording") or {}).get("seconds", 0.0) >= seconds

        wait_for("an episode is under way", long_enough, 20.0, self.why)

    def episodes(self) -> list[dict[str, Any]]:
        episodes: list[dict[str, Any]] = self.client.call("episodes.list")["episodes"]
        return episodes

    # --- the arm itself, from the simulation ---

    def torque(self) -> list[bool]:
        """Of the follower's servos, in the order of the joints."""
        torque: list[bool] = self.live.inject(state=True)["state"]["arms"]["follower"]["torque"]
        return torque

    def goals(self) -> dict[int, float]:
        """The last goal that was written to each servo of the follower, in degrees from the middle."""
        rows = [row for row in self.live.wire() if row["arm"] == "follower"]
        return {row["id"]: row["goal"] * 360 / 4096 for row in rows}

    def close(self) -> None:
        for cable in self._cables:
            cable.kill()
            cable.wait()
        self.machine.close()
        self.live.close()
