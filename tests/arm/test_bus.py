"""The guards around lerobot's driver, on the wire."""

import fcntl
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from agent.config import StationConfig
from agent.errors import BadInput, DeviceFault
from agent.messages import JOINTS
from agent.robot.bus import ServoBus
from agent.robot.port import NoReply, PortLost
from agent.virtual.arm import VirtualArm, default_calibration
from agent.virtual.calibration import save
from agent.virtual.faults import ReplyFault
from agent.virtual.servo import Register, Status


@pytest.fixture
def config(make_config: Callable[..., StationConfig]) -> StationConfig:
    config: StationConfig = make_config()
    save(config.paths.follower_calibration, default_calibration("so101"))
    return config


@pytest.fixture
def arm(config: StationConfig, hardware: None) -> Iterator[VirtualArm]:
    with VirtualArm(config.robot.follower.port, default_calibration("so101")) as arm:
        yield arm


@pytest.fixture
def bus(config: StationConfig, arm: VirtualArm) -> Iterator[ServoBus]:
    bus = ServoBus(config, "follower")
    bus.open()
    yield bus
    bus.close()


def test_settings_are_written_only_where_they_differ_and_survive_a_power_cycle(bus: ServoBus, arm: VirtualArm) -> None:
    assert bus.configure(bus.settings(), limp=True) == []
    with arm.locked() as servos:
        for servo in servos:
            servo.power_cycle()
            assert (servo.byte(Register.P), servo.byte(Register.RETURN_DELAY)) == (16, 0)
    assert arm.servo(6).get(Register.MAX_TORQUE) == 500
    settings = bus.settings()
    bus.configure(settings, limp=True)
    assert bus.settings() == settings


def test_configuring_an_arm_under_torque_leaves_the_torque_on(bus: ServoBus, arm: VirtualArm) -> None:
    for name in JOINTS:
        bus.set_torque(name, on=True)
    waiting = bus.configure(bus.settings(), limp=False)
    assert all(servo.torque_enabled for servo in arm.servos)
    assert arm.servo(1).byte(Register.P) == 16
    assert waiting == ["gripper.Max_Torque_Limit", "gripper.Protection_Current", "gripper.Overload_Torque"]
    assert arm.servo(6).get(Register.MAX_TORQUE) == 1000


def test_the_settings_are_those_of_lerobots_own_configure(config: StationConfig, arm: VirtualArm) -> None:
    """The proof that not calling SOFollower.configure() changes nothing."""
    ours = ServoBus(config, "follower")
    ours.open()
    ours.arm.configure()
    theirs = ours.settings()
    ours.arm.bus.disable_torque()
    with arm.locked() as servos:
        registers = [servo.read(0, 87) for servo in servos]
    ours.configure(ours.settings(), limp=True)
    assert ours.settings() == theirs
    for before, servo in zip(registers, arm.servos, strict=True):
        after = servo.read(0, 87)
        for address in (Register.ACCELERATION, Register.MAX_ACCELERATION):
            assert after[address] == before[address]
    ours.close()


def test_alarms_do_not_hide_servos_or_prevent_a_release(bus: ServoBus, arm: VirtualArm) -> None:
    for name in JOINTS:
        bus.set_torque(name, on=True)
    with arm.locked() as servos:
        for servo in servos:
            servo.hot_c = 80.0
            servo.supply_v = 3.0
    assert set(bus.settings()) == set(JOINTS)
    bus.positions()
    assert bus.status_bits["elbow_flex"] == Status.HEAT | Status.VOLTAGE
    assert bus.release() == []
    assert not any(servo.torque_enabled for servo in arm.servos)


def test_a_release_tries_every_servo_and_names_those_that_failed(bus: ServoBus, arm: VirtualArm) -> None:
    for name in JOINTS:
        bus.set_torque(name, on=True)
    arm.servo(2).present = False
    assert bus.release() == ["shoulder_lift"]
    assert [servo.torque_enabled for servo in arm.servos] == [False, True, False, False, False, False]


def test_a_write_whose_acknowledgement_is_lost_counts_when_it_reads_back(bus: ServoBus, arm: VirtualArm) -> None:
    arm.faults.add("drop", ReplyFault(instruction="write", servo=3, count=1))
    bus.set_torque("elbow_flex", on=True)
    assert arm.servo(3).torque_enabled


def test_missing_servos_are_named_in_cable_order(bus: ServoBus, arm: VirtualArm) -> None:
    arm.servo(1).present = False
    with pytest.raises(DeviceFault, match=r"shoulder_pan \(id 1\) does not answer.*from the controller board"):
        bus.settings()
    arm.set_power(False)
    with pytest.raises(DeviceFault, match="power supply"):
        bus.settings()


def test_another_model_of_servo_is_refused(bus: ServoBus, arm: VirtualArm) -> None:
    arm.servo(4).set(Register.MODEL, 2825)
    with pytest.raises(DeviceFault, match=r"wrist_flex.*2825"):
        bus.settings()


def test_a_vanished_port_is_one_kind_of_error_and_closes_cleanly(bus: ServoBus, arm: VirtualArm) -> None:
    arm.port.unplug()
    for action in (bus.positions, bus.live, bus.settings, bus.release, lambda: bus.write_goals({"gripper": 2000})):
        with pytest.raises(PortLost):
            action()
    bus.close()
    bus.close()
    assert not bus.arm.is_connected, "or lerobot's destructor would switch the torque off"


def test_replugging_leaks_no_descriptor_and_closes_none_of_another(config: StationConfig, arm: VirtualArm) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        bus = ServoBus(config, "follower")
        bus.open()
        arm.port.unplug()
        with pytest.raises(PortLost):
            bus.positions()
        bus.close()
        del bus
        gc.collect()
        arm.port.replug()
        fresh = ServoBus(config, "follower")
        fresh.open()
        fresh.live()
        fresh.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_silent_bus_costs_its_timeout_and_no_more(bus: ServoBus, arm: VirtualArm) -> None:
    arm.faults.add("drop")
    begin = time.monotonic()
    with pytest.raises(NoReply):
        bus.positions()
    assert 0.014 < time.monotonic() - begin < 0.05  # lerobot's default: 50 ms a try, three tries


def test_a_port_that_takes_no_bytes_is_given_up_and_closes(config: StationConfig) -> None:
    master, slave = os.openpty()
    config.robot.follower.port.symlink_to(os.ttyname(slave))
    bus = ServoBus(config, "follower")
    bus.open()

    def fill() -> None:
        for _ in range(100_000):  # until the terminal's buffer is full
            bus.write_goals(dict.fromkeys(JOINTS, 2000))

    with pytest.raises(PortLost):
        fill()
    bus.close()
    os.close(slave)
    os.close(master)


def test_a_port_that_does_not_exist_is_named(config: StationConfig) -> None:
    bus = ServoBus(config, "follower")
    with pytest.raises(BadInput, match=f"{config.robot.follower.port} does not exist"):
        bus.open()
    bus.close()


def test_a_port_that_another_program_locked_is_refused_with_its_pid(config: StationConfig, arm: VirtualArm) -> None:
    script = "import fcntl,sys; f=open(sys.argv[1],'rb+',0); fcntl.flock(f,fcntl.LOCK_EX); print(1,flush=True); input()"
    port = str(config.robot.follower.port)
    other = subprocess.Popen(
        [sys.executable, "-c", script, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    other.stdout.readline()
    bus = ServoBus(config, "follower")
    with pytest.raises(BadInput, match=f"held by process {other.pid} "):
        bus.open()
    other.communicate("\n", timeout=5)
    bus.open()
    with open(port, "rb+", 0) as again, pytest.raises(BlockingIOError):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    bus.close()
    assert os.path.exists(port)
