"""The mosquitto under test, with the configuration that is shipped, and what it costs."""

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from benchmarks.control_bench.host import cpu_s, resident_mb

ROOT: Final = Path(__file__).resolve().parents[2]
SHIPPED: Final = ROOT / "configs" / "mosquitto"
START_S: Final = 10.0
LOOK_S: Final = 0.02


class Broker:
    def __init__(self, folder: Path, plain: bool) -> None:
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        if program is None:
            raise SystemExit("mosquitto is not installed: apt install mosquitto")
        self._program = program
        self._folder = folder
        self.port = _free_port()
        self._file = folder / "mosquitto.conf"
        self._file.write_text("\n".join(self._settings(plain)) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self._used_s = 0.0  # CPU time of those that were killed

    def _settings(self, plain: bool) -> list[str]:
        text = (SHIPPED / "so-agent.conf").read_text()
        if plain:
            without = ("cafile", "certfile", "keyfile", "require", "use_", "acl_file", "allow_anonymous")
            lines = [line for line in text.splitlines() if not line.startswith(without)] + ["allow_anonymous true"]
        else:
            # The desk commands and the dashboard reads under the names that the shipped list gives them.
            shutil.copy(SHIPPED / "acl", self._folder / "acl")
            text = text.replace("/etc/mosquitto/so-agent/acl", str(self._folder / "acl"))
            lines = text.replace("/etc/mosquitto/so-agent", str(self._folder / "tls")).splitlines()
        return [f"listener {self.port} 127.0.0.1" if line.startswith("listener") else line for line in lines]

    def start(self) -> None:
        subprocess.run(["chmod", "-R", "a+rX", self._folder], check=True)  # it gives up root before it reads them
        with (self._folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", self._file], stdout=log, stderr=log)
        give_up = time.monotonic() + START_S
        while time.monotonic() < give_up:
            if self._process.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(LOOK_S)
        raise SystemExit(f"mosquitto does not start: {(self._folder / 'mosquitto.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """As a power cut would."""
        if self._process:
            self._used_s = self.cpu_s()
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self._process.pid if self._process else 0

    def cpu_s(self) -> float:
        return self._used_s + cpu_s([self.pid]).get(self.pid, 0.0)

    def resident_mb(self) -> float:
        return resident_mb(self._process.pid) if self._process else 0.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
