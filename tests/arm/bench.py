"""A station's two virtual arms, and the real arm process on them."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import msgspec

from agent.config import StationConfig
from agent.messages import (
    JOINTS,
    ArmCommand,
    ArmDrive,
    ArmHeartbeat,
    ArmReply,
    ArmReport,
    Drive,
    Joints,
    Tick,
)
from agent.transport import CommandClient, Subscriber
from agent.virtual.arm import VirtualArm, default_calibration
from agent.virtual.calibration import save
from tests.nursery import ARM, Child, Nursery

START_S = 10.0
HEARTBEAT_S = 0.5

SLOW_STEP_DEG = 2.0
"""Aligning at 30 degrees a second and 30 Hz makes steps of one degree, the soft start of following up to 1.5; a jump
at the full speed allowed would be 8."""


class Bench:
    """Two virtual arms, an arm process when `start` was called, and everything that it published."""

    def __init__(self, config: StationConfig, nursery: Nursery) -> None:
        self.config = config
        self._nursery = nursery
        leader = config.robot.leader
        assert leader is not None
        ours, theirs = default_calibration("so101"), default_calibration("so101", "leader")
        save(config.paths.follower_calibration, ours)
        assert config.paths.leader_calibration is not None
        save(config.paths.leader_calibration, theirs)
        self.follower = VirtualArm(config.robot.follower.port, ours)
        self.leader = VirtualArm(leader.port, theirs)
        self.ticks: list[Tick] = []
        self.reports: list[ArmReport] = []
        self._children: dict[int, Child] = {}
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self.heartbeats = threading.Event()
        self.heartbeats.set()
        self._threads: list[threading.Thread] = []

    # --- life ---

    def open(self) -> "Bench":
        self.follower.start()
        self.leader.start()
        return self.watch()

    def watch(self) -> "Bench":
        """Collect what the process publishes, and send heartbeats."""
        self.config.paths.run.mkdir(parents=True, exist_ok=True)
        for work in (self._collect, self._beat):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def close(self, arms: bool = True) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join(5)
        for child in self._children.values():
            child.kill()
        if arms:
            self.follower.stop()
            self.leader.stop()

    def start(self, connected: bool = True, config: StationConfig | None = None) -> int:
        """Start an arm process; waits for its first report, and for both arms with `connected`."""
        child = self._nursery.spawn("arm", f"{ARM}:main", config or self.config, orphan_stays=True)
        self._children[child.pid] = child
        self.wait(
            lambda report: (
                report.pid == child.pid and (not connected or (report.bus_connected and report.leader_connected))
            ),
            START_S,
        )
        return child.pid

    def kill(self, pid: int) -> None:
        self._children[pid].kill()

    def ended(self, pid: int, within_s: float = 5.0) -> int:
        """Exit status of a process that ends within this time."""
        return self._children[pid].ended(within_s)

    # --- talking ---

    def ask(self, command: ArmCommand) -> ArmReport:
        client: CommandClient[ArmReport] = CommandClient(self.config.paths.arm_ctl, ArmReply)
        return client.ask(command, 3.0)

    def drive(self, drive: Drive) -> ArmReport:
        return self.ask(ArmDrive(drive, f"test asks for {drive}"))

    def follow(self, pose: Joints | None = None) -> None:
        """Teleoperation until the follower is where the leader is, which is at `pose`."""
        if pose:
            self.leader.set_joints_deg(pose)
        self.drive(Drive.ALIGN)
        self.wait(lambda report: report.drive is Drive.FOLLOW, 8.0)
        self.wait_until(lambda: biggest_difference(self.follower.joints_deg(), self.leader.joints_deg()) < 0.2, 2.0)

    def wait(self, wanted: Callable[[ArmReport], bool], within_s: float) -> float:
        """Seconds until a report from now on satisfies `wanted`. Fails with the last report after `within_s`."""
        begin = time.monotonic()
        seen = max(0, len(self.reports) - 1)
        with self._changed:
            while True:
                for report in self.reports[seen:]:
                    if wanted(report):
                        return time.monotonic() - begin
                seen = max(seen, len(self.reports) - 1)
                left = begin + within_s - time.monotonic()
                assert left > 0, f"not within {within_s} s; last: {self.reports[-1] if self.reports else None}"
                self._changed.wait(left)

    def wait_for_ticks(self, count: int, within_s: float = 5.0) -> list[Tick]:
        """The next `count` ticks."""
        begin = len(self.ticks)
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.ticks) >= begin + count, within_s), "no ticks"
        return self.ticks[begin : begin + count]

    def wait_until(self, wanted: Callable[[], bool], within_s: float) -> float:
        """Seconds until something becomes true, looked at after each message."""
        begin = time.monotonic()
        with self._changed:
            assert self._changed.wait_for(wanted, within_s), f"not within {within_s} s: {self.last}"
        return time.monotonic() - begin

    @property
    def last(self) -> ArmReport:
        return self.reports[-1]

    # --- looking at the wire ---

    def torque(self) -> list[bool]:
        with self.follower.locked() as servos:
            return [servo.torque_enabled for servo in servos]

    def biggest_step_deg(self, since: int = 0) -> float:
        """The largest change between consecutive goals of any servo on the wire, in degrees of the servo."""
        before: dict[int, int] = {}
        biggest = 0
        for _, goals in self.follower.goals.since(since):
            for servo, goal in goals.items():
                biggest = max(biggest, abs(goal - before.get(servo, goal)))
                before[servo] = goal
        return biggest * 360 / 4096

    def _collect(self) -> None:
        decoder = msgspec.msgpack.Decoder(Tick | ArmReport)
        subscriber = Subscriber(self.config.paths.arm_pub, queue=10_000)
        while not self._closing.is_set():
            parts = subscriber.receive(0.05)
            if parts is None:
                continue
            message = decoder.decode(parts[0].buffer)
            with self._changed:
                if isinstance(message, Tick):
                    self.ticks.append(message)
                else:
                    self.reports.append(message)
                self._changed.notify_all()
        subscriber.close()

    def _beat(self) -> None:
        """The supervisor's heartbeat, while `heartbeats` is set."""
        client: CommandClient[ArmReport] = CommandClient(self.config.paths.arm_ctl, ArmReply)
        while not self._closing.wait(HEARTBEAT_S):
            if self.heartbeats.is_set():
                with contextlib.suppress(Exception):  # no process now: that is for the test to notice
                    client.ask(ArmHeartbeat(), HEARTBEAT_S)


def biggest_difference(a: Joints, b: Joints) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


@contextlib.contextmanager
def running(config: StationConfig, nursery: Nursery) -> Iterator[Bench]:
    bench = Bench(config, nursery).open()
    try:
        yield bench
    finally:
        bench.close()


__all__ = ["JOINTS", "Bench", "Nursery", "biggest_difference", "running"]
