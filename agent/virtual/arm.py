"""One arm on its serial port, moving in real time: what a driver finds behind /dev/serial/by-id/..."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from agent.messages import Joints
from agent.virtual.bus import ServoBus, WireLog
from agent.virtual.calibration import Calibration, JointScale, default_calibration, servos
from agent.virtual.faults import Faults
from agent.virtual.realtime import run_like_hardware
from agent.virtual.serial_port import PtyPort
from agent.virtual.servo import MAX_SPEED_COUNTS_S, Servo

__all__ = ["KinematicPlant", "Plant", "PlantThread", "VirtualArm", "default_calibration"]

STEP_S: Final = 0.005
POSITION_GAIN_PER_S: Final = 25.0  # first-order lag of 40 ms, as measured on an STS3215 at P=16
FRICTION_EFFORT: Final = 0.08  # load that a freely moving joint shows at full speed
STALL_ERROR_COUNTS: Final = 20.0  # a blocked joint that is further off pushes with all it has
RESYNC_S: Final = 0.25  # further behind than this, lost time is given up, not made up
JOIN_S: Final = 2.0


class Plant(Protocol):
    """The mechanics behind the servos."""

    def step(self, dt_s: float) -> None:
        """Advance by `dt_s` seconds: move the servos of the bus, holding its lock."""
        ...


class KinematicPlant:
    """Servos that follow their goal with a first-order lag at real speed; no masses, no contacts."""

    def __init__(self, bus: ServoBus) -> None:
        self._bus = bus

    def step(self, dt_s: float) -> None:
        with self._bus.lock:
            for servo in self._bus.servos:
                move(servo, dt_s)
                servo.advance(dt_s)


def move(servo: Servo, dt_s: float) -> None:
    """One kinematic step of one servo."""
    target = servo.target()
    error = 0.0 if target is None else target - servo.position
    if servo.stalled:
        servo.velocity = 0.0
        pushes = abs(error) > STALL_ERROR_COUNTS
        servo.effort = (servo.torque_limit if error > 0 else -servo.torque_limit) if pushes else 0.0
        return
    most = servo.speed_limit * dt_s
    moved = max(-most, min(most, error * min(1.0, dt_s * POSITION_GAIN_PER_S * servo.stiffness)))
    servo.position += moved
    servo.velocity = moved / dt_s
    servo.effort = FRICTION_EFFORT * servo.velocity / MAX_SPEED_COUNTS_S


class PlantThread:
    """Steps plants in real time, to absolute deadlines."""

    def __init__(self, plants: Sequence[Plant], step_s: float = STEP_S) -> None:
        self._plants = plants
        self._step_s = step_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plant", daemon=True)
        self._started_s = 0.0
        self.simulated_s = 0.0
        self.given_up_s = 0.0  # real time that was not simulated because the host was too slow

    def start(self) -> None:
        self._started_s = time.monotonic()
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def real_time_factor(self) -> float:
        """Simulated over real seconds since the start; 1 unless the host is too slow."""
        return self.simulated_s / max(self._step_s, time.monotonic() - self._started_s)

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        run_like_hardware()
        due = time.monotonic()
        while not self._stop.is_set():
            for plant in self._plants:
                plant.step(self._step_s)
            self.simulated_s += self._step_s
            due += self._step_s
            ahead = due - time.monotonic()
            if ahead > 0:
                self._stop.wait(ahead)
            elif ahead < -RESYNC_S:
                self.given_up_s -= ahead
                due -= ahead


class VirtualArm:
    """Bus, port and, unless something else moves its servos, a plant of its own. A context manager.

    `calibration` is the dict of lerobot's calibration file; the servos' registers are set to it. `link` is the port
    to give the driver. `plant=None` runs a `KinematicPlant`; to drive the servos from elsewhere pass `moved=False`.
    """

    def __init__(
        self,
        link: Path,
        calibration: Calibration,
        plant: Plant | None = None,
        *,
        moved: bool = True,
        paced: bool = False,
    ) -> None:
        self.link = link
        self.calibration = calibration
        self.scale = JointScale(calibration)
        self.bus = ServoBus(servos(calibration), paced=paced)
        self.port = PtyPort(self.bus, link)
        self._plant = PlantThread([plant or KinematicPlant(self.bus)]) if moved else None

    @property
    def servos(self) -> list[Servo]:
        return self.bus.servos

    @property
    def faults(self) -> Faults:
        return self.bus.faults

    @property
    def goals(self) -> WireLog:
        return self.bus.goals

    def joints_deg(self) -> Joints:
        """Where the joints really are: degrees about the calibrated middle, gripper in percent."""
        with self.bus.lock:
            return self.scale.joints(self.servos)

    def set_joints_deg(self, values: Sequence[float]) -> None:
        """Put the joints there at once, as a hand would; goals stay what they were."""
        with self.bus.lock:
            for index, value in enumerate(values):
                self.servos[index].position = self.scale.to_counts(index, value)
                self.servos[index].velocity = 0.0

    def servo(self, servo_id: int) -> Servo:
        """By the id it was made with, also while it is missing."""
        return self.servos[servo_id - 1]

    @contextlib.contextmanager
    def locked(self) -> Iterator[list[Servo]]:
        """The servos while neither bus nor plant touches them."""
        with self.bus.lock:
            yield self.servos

    def set_power(self, on: bool) -> None:
        """Bus power. Without it nothing answers and the arm is limp; when it returns every servo reboots."""
        with self.bus.lock:
            for servo in self.servos:
                if on and not servo.powered:
                    servo.power_cycle()
                servo.powered = on

    def clear_faults(self) -> None:
        """Everything that was injected is over; what rebooted stays rebooted."""
        self.faults.clear()
        self.set_power(True)
        with self.bus.lock:
            for servo in self.servos:
                servo.restore()
        self.port.replug()

    def start(self) -> Self:
        self.port.replug()
        if self._plant:
            self._plant.start()
        return self

    def stop(self) -> None:
        if self._plant:
            self._plant.stop()
        self.port.unplug()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
