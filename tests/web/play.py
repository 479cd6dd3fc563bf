"""A station to look at: real agent, real recorder, real HTTP process; arm, cameras and policy only act as if.

Run as `python -m tests.web.play FOLDER [PORT [LEASE_S]]`. Prints `ready URL` when the page can be opened, ends with its
input.
The same as the virtual station costs two cores; this one costs a tenth of one, and does at once what it is told.
"""

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from agent.api.local import serve
from agent.clock import NS_PER_S, Clock, SystemClock
from agent.config import StationConfig
from agent.fl.desk import Desk
from agent.messages import (
    JOINTS,
    ArmReport,
    CameraReport,
    CameraState,
    Drive,
    Execution,
    FrameHeader,
    Joints,
    Limit,
    LoopStats,
    ServoHealth,
    Source,
    Tick,
)
from agent.policy_messages import LoadPolicy, PolicyCommand, PolicyReport, PolicyState, StartTask, StopTask
from agent.robot.calibration import JointCalibration, save
from agent.station import Station
from agent.telemetry import configure
from agent.transport import CommandServer, Publisher
from tests.daemon.fake_arm import FakeArm

HZ: Final = 30
REPORT_TICKS: Final = 15
PARKED: Final[Joints] = (0.0, -98.0, 95.0, 55.0, 0.0, 5.0)
READY_S: Final = 120.0
"""The recorder imports lerobot, which takes 4 s on an idle machine."""

ALIGN_S: Final = 1.0
PARK_S: Final = 1.5
MARK: Final = "SO_AGENT_PLAY"

SOURCES: Final = {
    Drive.FOLLOW: Source.LEADER,
    Drive.EXECUTE: Source.POLICY,
    Drive.HOLD: Source.HOLD,
    Drive.PARK: Source.PARK,
    Drive.ALIGN: Source.ALIGN,
}


def path(t: float) -> Joints:
    """Where the leader, or the policy, wants the arm after `t` seconds."""
    return (
        40 * math.sin(t * 0.9),
        -30 + 25 * math.sin(t * 0.7),
        40 + 25 * math.cos(t * 0.8),
        20 * math.sin(t * 1.1),
        60 * math.sin(t * 0.5),
        50 + 45 * math.sin(t * 1.3),
    )


class PlayArm(FakeArm):
    """The fake arm with a body: it publishes ticks and reports, and moves."""

    def __init__(self, config: StationConfig) -> None:
        super().__init__(config.paths.arm_ctl)
        self.drive, self.reason = Drive.LIMP, "parked"
        self.measured, self.sent = PARKED, PARKED
        self._config = config
        self._since_s = 0.0
        self._generation = 0
        self._ticks = 0

    def run(self) -> None:
        publisher = Publisher(self._config.paths.arm_pub)
        due_ns = time.monotonic_ns()
        while not self._ending.is_set():
            due_ns += NS_PER_S // HZ
            while (left_s := (due_ns - time.monotonic_ns()) / NS_PER_S) > 0:
                if request := self._server.receive(left_s):
                    envelope, command = request
                    self._generation = getattr(command, "generation", 0) or self._generation
                    self._server.reply(envelope, self.answer(command))
                    publisher.send(self.report())
            self._move(time.monotonic())
            publisher.send(self._tick(due_ns))
            self._ticks += 1
            if self._ticks % REPORT_TICKS == 0:
                publisher.send(self.report())
        publisher.close()
        self._server.close()

    def _enter(self, drive: Drive, reason: str) -> None:
        super()._enter(Drive.ALIGN if drive is Drive.FOLLOW else drive, reason)
        self._since_s = time.monotonic()

    def _move(self, now_s: float) -> None:
        if self.drive is Drive.ALIGN and now_s - self._since_s > ALIGN_S:
            super()._enter(Drive.FOLLOW, "following the leader")
        if self.drive is Drive.PARK and now_s - self._since_s > PARK_S:
            super()._enter(Drive.LIMP, "parked")
        wanted = {
            Drive.FOLLOW: path(now_s),
            Drive.EXECUTE: path(now_s),
            Drive.ALIGN: path(now_s),
            Drive.PARK: PARKED,
        }.get(self.drive, self.sent)
        step = 0.06 if self.drive in (Drive.ALIGN, Drive.PARK) else 0.5
        self.sent = _towards(self.sent, wanted, step)
        self.measured = _towards(self.measured, self.sent, 0.35)

    def _tick(self, due_ns: int) -> Tick:
        moves = self.drive in (Drive.FOLLOW, Drive.EXECUTE)
        limits = (Limit("gripper", "speed", 99.0, 95.0),) if moves and self.sent[5] > 94 else ()
        return Tick(
            seq=self._ticks,
            due_ns=due_ns,
            read_ns=time.monotonic_ns(),
            drive=self.drive,
            source=SOURCES.get(self.drive, Source.NONE),
            measured=self.measured,
            leader=path(time.monotonic()),
            requested=self.sent,
            sent=self.sent if self.drive not in (Drive.LIMP, Drive.OFFLINE) else None,
            limits=limits,
            generation=self._generation if self.drive is Drive.EXECUTE else 0,
        )

    def report(self) -> ArmReport:
        torque = self.drive is not Drive.LIMP
        load = 18.0 if torque else 0.0
        servos = tuple(
            ServoHealth(name, number + 1, 0, 34.0 + number * 1.7, 7.3, load - number * 2 if torque else 0.0, torque)
            for number, name in enumerate(JOINTS)
        )
        execution = Execution(
            self._generation, chunks=self._ticks // 20, depth=31, ticks=self._ticks, starved_ticks=0, seam=0.3
        )
        return ArmReport(
            at_ns=time.monotonic_ns(),
            pid=os.getpid(),
            drive=self.drive,
            reason=self.reason,
            bus_connected=True,
            leader_connected=True,
            torque_on=torque,
            estop_verified=self.verified if self.drive is Drive.ESTOP else None,
            measured=self.measured,
            sent=self.sent,
            servos=servos,
            loop=LoopStats(30.0, 0.04, 0.21, 0.9, 0, "SCHED_FIFO 10"),
            ticks=self._ticks,
            execution=execution if self.drive is Drive.EXECUTE else None,
        )


def _towards(now: Joints, wanted: Joints, share: float) -> Joints:
    a, b, c, d, e, f = (here + (there - here) * share for here, there in zip(now, wanted, strict=True))
    return (a, b, c, d, e, f)


class PlayCamera(threading.Thread):
    """Draws the arm that it sees. `frozen` stops the picture, `silent` everything."""

    def __init__(self, config: StationConfig, name: str, arm: PlayArm) -> None:
        super().__init__(daemon=True)
        self._camera = config.cameras[name]
        self._name, self._arm = name, arm
        self._publisher_path = config.paths.camera_pub(name)
        self._ending = threading.Event()
        self.frozen = False
        size = (self._camera.height, self._camera.width, 3)
        shade = np.linspace(0, 60, size[0])[:, None, None]
        self._table = np.broadcast_to(np.array([196, 184, 168]) - shade, size).astype(np.uint8)

    def run(self) -> None:
        publisher = Publisher(self._publisher_path)
        seq, capture_ns = 0, 0
        started_ns = time.monotonic_ns()
        for turn in range(sys.maxsize):
            due_ns = started_ns + turn * NS_PER_S // HZ
            if self._ending.wait(max(0, due_ns - time.monotonic_ns()) / NS_PER_S):
                break
            if not self.frozen:
                seq, capture_ns = seq + 1, time.monotonic_ns()
                image = self._draw(seq)
                header = FrameHeader(self._name, seq, capture_ns, self._camera.width, self._camera.height)
                publisher.send(header, image.data)
            if turn % HZ == 0:
                state = CameraState.FROZEN if self.frozen else CameraState.STREAMING
                reason = "frames arrive, but they are identical to the last byte" if self.frozen else ""
                rate = 0.0 if self.frozen else 30.0
                size = (self._camera.width, self._camera.height)
                told_ns = time.monotonic_ns()
                report = CameraReport(self._name, told_ns, 0, state, reason, seq, rate, capture_ns or None, *size)
                publisher.send(report)
        publisher.close()

    def _draw(self, seq: int) -> Any:
        image = self._table.copy()
        height, width = image.shape[:2]
        pan, lift, elbow, wrist, _, gripper = (math.radians(value) for value in self._arm.measured)
        x, y, angle = width * 0.5 + 80 * pan, height * 0.95, -math.pi / 2 + lift * 0.5 + pan * 0.4
        cv2.circle(image, (int(width * 0.68), int(height * 0.55)), height // 14, (200, 60, 50), -1, cv2.LINE_AA)
        for length, turn, thick in ((0.33, 0.0, 26), (0.28, elbow * 0.6, 22), (0.14, wrist * 0.6, 16)):
            angle += turn
            to = (x + height * length * math.cos(angle), y + height * length * math.sin(angle))
            cv2.line(image, (int(x), int(y)), (int(to[0]), int(to[1])), (236, 178, 44), thick, cv2.LINE_AA)
            cv2.circle(image, (int(x), int(y)), thick // 2 + 3, (40, 44, 52), -1, cv2.LINE_AA)
            x, y = to
        for side in (-1, 1):
            tip = angle + side * (0.15 + gripper * 0.5)
            to = (x + height * 0.09 * math.cos(tip), y + height * 0.09 * math.sin(tip))
            cv2.line(image, (int(x), int(y)), (int(to[0]), int(to[1])), (40, 44, 52), 9, cv2.LINE_AA)
        return image

    def close(self) -> None:
        self._ending.set()
        self.join()


class PlayPolicy(threading.Thread):
    """Loads at once, and says that it predicts."""

    def __init__(self, config: StationConfig) -> None:
        super().__init__(daemon=True)
        self._config = config
        self._ending = threading.Event()
        self._state = PolicyState.EMPTY
        self._policy: str | None = None
        self._task: str | None = None
        self._generation = 0

    def run(self) -> None:
        publisher = Publisher(self._config.paths.policy_pub)
        server: CommandServer[Any] = CommandServer(self._config.paths.policy_ctl, PolicyCommand)
        while not self._ending.is_set():
            if request := server.receive(0.25):
                envelope, command = request
                self._obey(command)
                server.reply(envelope, self._report())
            publisher.send(self._report())
        server.close()
        publisher.close()

    def _obey(self, command: Any) -> None:
        match command:
            case LoadPolicy(policy=name):
                self._state, self._policy = PolicyState.READY, name
            case StartTask(task=task, generation=generation):
                self._state, self._task, self._generation = PolicyState.RUNNING, task, generation
            case StopTask():
                self._state, self._task = PolicyState.READY, None

    def _report(self) -> PolicyReport:
        loaded = self._policy is not None
        return PolicyReport(
            at_ns=time.monotonic_ns(),
            pid=os.getpid(),
            state=self._state,
            reason=str(self._state),
            policy=self._policy,
            hash="5f2c9a7d01be" if loaded else None,
            engine="openvino" if loaded else None,
            deviation=0.004 if loaded else None,
            cameras=("front",) if loaded else (),
            task=self._task,
            generation=self._generation,
            inference_s=0.112 if loaded else None,
            delay_p50_s=0.121 if loaded else None,
            delay_p95_s=0.164 if loaded else None,
            horizon_s=1.6 if loaded else None,
            verdict="fast enough: a chunk covers 1.6 s and takes 0.16 s" if loaded else "",
        )

    def close(self) -> None:
        self._ending.set()
        self.join()


class PlayFederation:
    """In a fleet, in the middle of a round."""

    def __init__(self, config: StationConfig, clock: Clock, desk: Desk) -> None:
        self._paused = False
        self._consent: dict[str, str | None] = {config.recording.dataset: "2026-11-20T09:00:00+00:00", "drawer": None}

    async def run(self) -> None:
        await asyncio.Event().wait()

    def yield_now(self, cause: str) -> None:
        pass

    def judged(self, policy: str, success: bool) -> None:
        pass

    def status(self) -> dict[str, Any]:
        tried = {"adapter": "a1", "at": "2026-11-26T03:12:00+00:00", "policy": "demo-reach", "base": "b", "rows": 812}
        worse = {"run": "reach-1", "round": 4, "outcome": "worse", "reason": "", "before": 0.0412, "after": 0.0440}
        better = {"run": "reach-1", "round": 5, "outcome": "promoted", "reason": "", "before": 0.0412, "after": 0.0387}
        progress = {
            "run": "reach-1", "round": 6, "rounds": 10, "doing": "training", "step": 31, "steps": 50, "loss": 0.0391,
        }  # fmt: skip
        return {
            "enrolled": True,
            "superlink": "fleet.example.org:9443",
            "key": "SHA256:2f9c41d07be35a80",
            "paused": self._paused,
            "state": "off" if self._paused else "working",
            "reason": "paused" if self._paused else "training in round 6 of reach-1",
            "against": ["paused"] if self._paused else [],
            "consent": sorted(name for name, since in self._consent.items() if since),
            "progress": None if self._paused else progress,
            "isolation": {"by": "a control group", "limits": []},
            "promotion": {
                "in_use": "demo-reach",
                "previous": "demo-reach-0",
                "candidates": [tried | worse, tried | better],
                "comparing": False,
            },
        }

    def verbs(self) -> dict[str, Any]:
        async def status(args: dict[str, Any], told: Any) -> dict[str, Any]:
            return self.status()

        async def pause(args: dict[str, Any], told: Any) -> dict[str, Any]:
            self._paused = True
            return {"paused": True}

        async def resume(args: dict[str, Any], told: Any) -> dict[str, Any]:
            self._paused = False
            return {"paused": False, "against": []}

        async def consent(args: dict[str, Any], told: Any) -> dict[str, Any]:
            if "dataset" in args:
                self._consent[args["dataset"]] = "2026-11-26T09:00:00+00:00" if args["on"] else None
            return {"consent": self._consent}

        return {"fl.status": status, "fl.pause": pause, "fl.resume": resume, "fl.consent": consent}


def make_config(folder: Path, port: int, **http: Any) -> StationConfig:
    camera = {"type": "zmq", "width": 640, "height": 480}
    return StationConfig(
        station="workbench",
        state_dir=str(folder / "state"),
        robot={
            "model": "so101",
            "follower": {"port": str(folder / "follower"), "id": "follower"},
            "leader": {"port": str(folder / "leader"), "id": "leader"},
            "calibration_dir": str(folder / "calibration"),
        },
        cameras={"front": camera | {"view": "OBS_IMAGE_1"}, "wrist": camera | {"view": "OBS_IMAGE_2"}},
        recording={"min_free_gb": 0.1, "max_repeat_pct": 100},  # a busy machine draws late
        http={"port": port} | http,
        logging={"level": "info", "format": "console"},
    )


def calibrate(config: StationConfig) -> None:
    """Ranges as a real arm has them; the page shows them."""
    degrees = ((-110, 110), (-100, 100), (-97, 97), (-95, 95), (-160, 160))
    counts = [(2048 + round(low * 4095 / 360), 2048 + round(high * 4095 / 360)) for low, high in degrees]
    save(
        config.paths.follower_calibration,
        {
            name: JointCalibration(number + 1, 0, 0, low, high)
            for number, (name, (low, high)) in enumerate(zip(JOINTS, [*counts, (2000, 3500)], strict=True))
        },
    )


@contextlib.contextmanager
def child(code: str, config: StationConfig) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the station, as the nursery would run it: `code` finds `config`."""
    prelude = "import os,sys;from agent.config import StationConfig;from agent.telemetry import configure;"
    given = f"config=StationConfig.model_validate_json(sys.argv[1]);configure(config.logging,'play');{code}"
    process = subprocess.Popen(
        [sys.executable, "-c", prelude + given, config.model_dump_json()],
        env=os.environ | {"HF_HUB_OFFLINE": "1", MARK: str(config.state_dir)},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def play(config: StationConfig) -> None:
    """Until the input ends."""
    paths = config.paths
    paths.run.mkdir(parents=True, exist_ok=True)
    for name in ("demo-reach", "pick-cube"):
        (paths.policies / name).mkdir(parents=True, exist_ok=True)
    calibrate(config)
    arm = PlayArm(config)
    cameras = [PlayCamera(config, name, arm) for name in config.views().values()]
    policy = PlayPolicy(config)
    threads = (arm, *cameras, policy)
    for thread in threads:
        thread.start()
    station = Station(config, SystemClock(), PlayFederation)
    recorder = "from agent.robot.recording.process import main;main(config)"
    web = "from agent.api.http.process import main;main(config)"
    with child(recorder, config) as writing, child(web, config) as serving:
        for name, pid in (("arm", os.getpid()), ("recorder", writing.pid), ("web", serving.pid)):
            station.supervisor.children[name].pid = pid
        for name in ("policy", *(f"camera-{camera}" for camera in config.cameras)):
            station.supervisor.children[name].pid = os.getpid()
        work = [*station.links.listeners().values(), station.leases.watch()]
        tasks = [asyncio.create_task(each) for each in work]
        async with serve(paths.agent_socket, station.handle):
            await _until_ready(station, config)
            assert config.http
            print(f"ready http://127.0.0.1:{config.http.port}", flush=True)
            await _orders(station, arm, cameras, serving.pid)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for thread in threads:
        thread.close()


async def _until_ready(station: Station, config: StationConfig) -> None:
    assert config.http
    async with asyncio.timeout(READY_S):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", config.http.port)
                writer.close()
                if station.links.recorder and station.links.recorder.state == "ready" and station.links.arm:
                    return
            await asyncio.sleep(0.05)


async def _orders(station: Station, arm: PlayArm, cameras: list[PlayCamera], web: int) -> None:
    """What tests make go wrong, one word a line; ends with the input."""
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lines.feed_eof)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := (await lines.readline()).decode().strip():
        match line.split():
            case ["freeze", name]:
                next(camera for camera in cameras if camera._name == name).frozen = True
            case ["thaw", name]:
                next(camera for camera in cameras if camera._name == name).frozen = False
            case [("verified" | "unverified") as word]:
                arm.verified = True if word == "verified" else None
            case ["pause"]:
                os.kill(web, signal.SIGSTOP)
            case ["resume"]:
                os.kill(web, signal.SIGCONT)
        print("done", flush=True)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    number = int(sys.argv[2]) if len(sys.argv) > 2 else 8642
    lease_s = float(sys.argv[3]) if len(sys.argv) > 3 else 0.4
    settings = make_config(where, number, lease_s=lease_s)
    configure(settings.logging, "play")
    asyncio.run(play(settings))
