"""The whole virtual station, as the agent meets it: configured ports, lerobot's camera class, the control socket."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from agent.config import StationConfig
from agent.errors import BadInput, NotRunning
from agent.messages import JOINTS
from agent.virtual.calibration import load
from agent.virtual.client import inject
from agent.virtual.operator import REST
from agent.virtual.realtime import run_like_hardware
from agent.virtual.stamp import read_stamp
from agent.virtual.station import Station
from tests.virtual.waiting import until

WIDTH, HEIGHT = 320, 240
CONFIGS = Path(__file__).parents[2] / "configs"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def settings(folder: Path, model: str = "so101") -> dict[str, Any]:
    """The shipped virtual configuration on free ports, in a folder of its own, with smaller pictures."""
    values: dict[str, Any] = yaml.safe_load((CONFIGS / model / "virtual.yaml").read_text())
    values["state_dir"] = str(folder / "state")
    for camera in values["cameras"].values():
        camera |= {"width": WIDTH, "height": HEIGHT}
        camera["options"]["port"] = free_port()
    return values


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="so-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def config(folder: Path) -> StationConfig:
    return StationConfig(**settings(folder))


@pytest.fixture(scope="module")
def running(config: StationConfig, folder: Path) -> Iterator[Station]:
    with Station(config, seed=4, stamp=True, wire_log=folder / "wire.jsonl") as station:
        yield station


@pytest.fixture
def station(running: Station, config: StationConfig) -> Iterator[Station]:
    inject(config, {"operator": "pause"})
    yield running
    inject(config, {"clear": True, "scene": {"seed": 4}, "operator": "pause"})


def make_camera(config: StationConfig, name: str, timeout_ms: int = 2000) -> Any:
    from lerobot.cameras.zmq import ZMQCamera, ZMQCameraConfig

    made = config.cameras[name]
    return ZMQCamera(
        ZMQCameraConfig(
            width=made.width, height=made.height, fps=made.fps, timeout_ms=timeout_ms, warmup_s=1, **made.options
        )
    )


@pytest.fixture
def front(station: Station, config: StationConfig) -> Iterator[Any]:
    camera = make_camera(config, "front")
    camera.connect(warmup=False)
    camera.async_read(timeout_ms=3000)
    yield camera
    camera.disconnect()


def make_follower(config: StationConfig) -> Any:
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    arm = config.robot.follower
    folder = config.paths.follower_calibration.parent
    return SO101Follower(SO101FollowerConfig(port=str(arm.port), id=arm.id, calibration_dir=folder))


def make_leader(config: StationConfig) -> Any:
    from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig

    arm, path = config.robot.leader, config.paths.leader_calibration
    assert arm
    assert path
    return SO101Leader(SO101LeaderConfig(port=str(arm.port), id=arm.id, calibration_dir=path.parent))


def test_both_drivers_connect_calibrated_and_the_follower_follows_the_leader(
    station: Station, config: StationConfig
) -> None:
    follower, leader = make_follower(config), make_leader(config)
    follower.connect(calibrate=False)
    leader.connect(calibrate=False)
    try:
        assert follower.is_calibrated
        assert leader.is_calibrated
        pose = (20.0, -40.0, 50.0, 40.0, 10.0, 30.0)
        inject(config, {"operator": {"pose": pose}})

        def follows() -> bool:
            follower.send_action(leader.get_action())
            there = follower.get_observation()
            return max(abs(there[f"{name}.pos"] - want) for name, want in zip(JOINTS, pose, strict=True)) < 1.0

        until(follows, "the follower is where the leader was led", 10)
    finally:
        follower.disconnect()
        leader.disconnect()


def test_the_wire_log_file_holds_every_goal_as_it_was_on_the_wire(
    station: Station, config: StationConfig, folder: Path
) -> None:
    follower = make_follower(config)
    follower.connect(calibrate=False)
    start = time.monotonic_ns()
    follower.send_action(dict.fromkeys((f"{name}.pos" for name in JOINTS), 5.0))
    end = time.monotonic_ns()
    follower.disconnect()

    def last() -> list[dict[str, Any]]:
        lines = (folder / "wire.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")][-6:]

    until(lambda: last() and start < last()[0]["ns"], "what was on the wire is in the file")
    rows = last()
    assert all(start < row["ns"] < end + 50_000_000 for row in rows)
    assert {row["arm"] for row in rows} == {"follower"}
    wanted = follower.bus._unnormalize(dict.fromkeys(range(1, 7), 5.0))
    assert {row["id"]: row["goal"] for row in rows} == wanted


def test_the_unmodified_camera_class_gets_rgb_frames_at_the_configured_rate(front: Any) -> None:
    frames = []
    start = time.monotonic()
    while len(frames) < 15:
        frames.append(front.async_read(timeout_ms=1000))
    assert 0.3 < time.monotonic() - start < 2.0
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    arm = frames[0].astype(int)
    yellow = (arm[..., 0] > 150) & (arm[..., 1] > 110) & (arm[..., 2] < 90)
    assert yellow.sum() > 500  # the arm's plastic is yellow only if red comes first


def test_a_still_scene_is_never_twice_the_same_frame(station: Station, front: Any) -> None:
    seen = [front.async_read(timeout_ms=1000)[HEIGHT // 4 :] for _ in range(8)]
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(seen))


def test_a_frame_says_how_many_goals_were_on_the_wire_and_when_it_was_drawn(
    station: Station, front: Any, config: StationConfig
) -> None:
    follower = make_follower(config)
    follower.connect(calibrate=False)
    rest = {f"{name}.pos": value for name, value in zip(JOINTS, REST, strict=True)}
    for _ in range(3):
        follower.send_action(rest)
    until(lambda: read_stamp(front.async_read(timeout_ms=1000)).goal_count == station.follower.goals.count, "stamped")
    follower.disconnect()
    stamp = read_stamp(front.async_read(timeout_ms=1000))
    assert 0 <= time.monotonic_ns() // 1_000_000 - stamp.ms < 1000


def test_a_frozen_camera_repeats_itself_and_recovers(station: Station, config: StationConfig, front: Any) -> None:
    inject(config, {"camera": {"name": "front", "fault": "frozen"}})

    def same() -> bool:
        return np.array_equal(front.async_read(timeout_ms=1000), front.async_read(timeout_ms=1000))

    until(same, "frozen")
    inject(config, {"camera": {"fault": "none"}})
    until(lambda: not same(), "alive again")


def test_a_covered_camera_goes_on_with_nothing_on_its_pictures(
    station: Station, config: StationConfig, front: Any
) -> None:
    inject(config, {"camera": {"name": "front", "fault": "grey"}})
    until(lambda: float(front.async_read(timeout_ms=1000).std()) < 3, "grey")
    assert not np.array_equal(front.async_read(timeout_ms=1000), front.async_read(timeout_ms=1000))
    inject(config, {"camera": {"fault": "none"}})
    until(lambda: float(front.async_read(timeout_ms=1000).std()) > 10, "in sight again")


@pytest.mark.parametrize("fault", ["stalled", "gone"])
def test_a_stalled_or_missing_camera_sends_nothing_and_recovers(
    station: Station, config: StationConfig, front: Any, fault: str
) -> None:
    inject(config, {"camera": {"name": "front", "fault": fault}})

    def silent() -> bool:
        try:
            front.async_read(timeout_ms=150)
        except TimeoutError:
            return True
        return False

    until(silent, "silent")
    other = inject(config, {"state": True})["state"]["cameras"]["wrist"]["frames"]
    until(lambda: inject(config, {"state": True})["state"]["cameras"]["wrist"]["frames"] > other, "the other goes on")
    inject(config, {"clear": True})
    assert front.async_read(timeout_ms=3000) is not None


def bus_fails(config: StationConfig) -> Callable[[], bool]:
    follower = make_follower(config)

    def fails() -> bool:
        try:
            if not follower.bus.is_connected:
                follower.bus.connect(handshake=False)
            follower.bus.port_handler.ser.reset_input_buffer()
            follower.bus.sync_read("Present_Position", normalize=False)
        except OSError:  # ConnectionError is one
            return True
        return False

    return fails


@pytest.mark.parametrize(
    "fault",
    [
        {"drop": {}},
        {"corrupt": {"servo": "elbow_flex"}},
        {"truncate": {"servo": 2}},
        {"delay": {"servo": 1, "delay_ms": 200}},
        {"power": {"on": False}},
        {"missing": {"servo": 5}},
    ],
)
def test_bus_faults_break_reading_until_they_are_cleared(
    station: Station, config: StationConfig, fault: dict[str, Any]
) -> None:
    fails = bus_fails(config)
    assert not fails()
    inject(config, fault)
    assert fails()
    inject(config, {"clear": True})
    until(lambda: not fails(), "recovered")


@pytest.mark.parametrize(
    ("fault", "bit"),
    [
        ({"overheat": {"servo": 6}}, 4),
        ({"overload": {"servo": "gripper"}}, 32),
        ({"voltage": {"volts": 3.4, "servo": 6}}, 1),
    ],
)
def test_servo_alarms_show_in_its_status_until_they_are_cleared(
    station: Station, config: StationConfig, fault: dict[str, Any], bit: int
) -> None:
    def status() -> int:
        bits: int = inject(config, {"state": True})["state"]["arms"]["follower"]["status"][5]
        return bits

    inject(config, fault)
    assert status() & bit
    inject(config, {"clear": True})
    assert status() == 0


def test_a_vanished_port_returns(station: Station, config: StationConfig) -> None:
    inject(config, {"vanish": {"arm": "leader"}})
    leader = config.robot.leader
    assert leader
    assert not leader.port.exists()
    inject(config, {"return": {"arm": "leader"}})
    assert leader.port.exists()


def test_a_servo_can_be_rebooted_and_stalled(station: Station, config: StationConfig) -> None:
    follower = make_follower(config)
    follower.connect(calibrate=False)
    inject(config, {"reboot": {"servo": "elbow_flex"}, "stall": {"servo": 1}})
    torque = inject(config, {"state": True})["state"]["arms"]["follower"]["torque"]
    assert torque == [True, True, False, True, True, True]
    assert station.follower.servo(1).stalled
    follower.disconnect()


def test_the_scene_can_be_laid_from_a_seed_and_by_hand(station: Station, config: StationConfig) -> None:
    first = inject(config, {"scene": {"seed": 9}, "state": True})["state"]["objects"]
    inject(config, {"scene": {"seed": 10}})
    again = inject(config, {"scene": {"seed": 9}, "state": True})["state"]["objects"]
    assert again.keys() == first.keys()
    assert np.allclose([again[name] for name in first], list(first.values()), atol=1e-3)
    placed = inject(config, {"scene": {"place": {"blue disc": [0.2, 0.1]}}, "state": True})["state"]["objects"]
    assert placed["blue disc"][:2] == [0.2, 0.1]


def test_the_operator_moves_the_leader_at_human_speed_and_stops_when_paused(
    station: Station, config: StationConfig
) -> None:
    leader = station.arms["leader"]
    inject(config, {"operator": {"task": "touch"}})
    fastest, last, at = 0.0, leader.joints_deg(), time.monotonic()
    end = at + 15

    def moved() -> bool:
        """Whether the hand has been fast; measured over tenths of a second."""
        nonlocal fastest, last, at
        now = time.monotonic()
        if now - at > 0.1:
            joints = leader.joints_deg()
            fastest = max(fastest, max(abs(a - b) for a, b in zip(joints, last, strict=True)) / (now - at))
            last, at = joints, now
        return fastest > 40

    until(moved, "the hand moves", end - at)
    assert fastest < 95
    inject(config, {"operator": "pause"})
    until(lambda: all(abs(servo.velocity) < 1e-6 for servo in leader.servos), "the hand rests", 2)
    assert inject(config, {"state": True})["state"]["real_time_factor"] > 0.5


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({}, "Nothing was asked for"),
        ({"explode": {}}, "unknown field `explode`"),
        ({"drop": {"servo": 3, "often": 2}}, "unknown field `often`"),
        ({"drop": {"servo": 9}}, "There is no servo 9"),
        ({"drop": {"arm": "third"}}, "third"),
        ({"drop": {"probability": 2}}, "<= 1"),
        ({"camera": {"name": "side", "fault": "gone"}}, "no virtual camera 'side'"),
        ({"camera": {"name": "front", "fault": "foggy"}}, "foggy"),
        ({"scene": {"place": {"green hat": [0, 0]}}}, "green hat"),
        ({"operator": {"pose": [0, 60, 60, 60, 0, 5]}}, "hit the table"),
        ({"operator": {"pose": [170, 0, 0, 0, 0, 5]}}, "shoulder_pan cannot go to 170"),
        ({"operator": "dance"}, "operator"),
        ({"operator": {"task": "touch", "disc": "pink disc"}}, "no 'pink disc'"),
        ({"operator": {"reach": "pink disc"}}, "no 'pink disc'"),
        ({"operator": {}}, "neither a pose nor a task nor a reach"),
    ],
)
def test_what_cannot_be_injected_is_refused_in_a_sentence(
    station: Station, config: StationConfig, payload: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInput) as caught:
        inject(config, payload)
    assert sentence in caught.value.message
    assert caught.value.hint


def test_an_existing_calibration_is_used_and_a_missing_one_is_made(short_dir: Path) -> None:
    values = settings(short_dir)
    config = StationConfig(**values)
    path = config.paths.follower_calibration
    with Station(config, cameras=False):
        made = load(path)
    made["elbow_flex"]["homing_offset"] = 321
    path.write_text(json.dumps(made))
    with Station(config, cameras=False) as station:
        assert station.follower.calibration["elbow_flex"]["homing_offset"] == 321
        assert load(path) == made


def test_a_second_station_on_the_same_folder_is_refused_and_the_first_goes_on(
    station: Station, config: StationConfig
) -> None:
    with pytest.raises(BadInput, match="already serves"), Station(config, cameras=False):
        pass
    assert inject(config, {"state": True})["ok"]
    assert config.robot.follower.port.exists()


def urgent(thread: int) -> bool:
    return os.sched_getscheduler(thread) == os.SCHED_FIFO


def may_be_urgent() -> bool:
    with ThreadPoolExecutor(1) as other:
        return other.submit(run_like_hardware).result()


def test_who_may_hold_the_interpreters_lock_is_as_urgent_as_a_servo(station: Station, config: StationConfig) -> None:
    if not may_be_urgent():
        pytest.skip("SCHED_FIFO is not permitted here")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(config.paths.virtual_ctl))
        client.sendall(b'{"state": true}\n')
        assert client.recv(1)  # so the connection has its thread
        mine = ("plant", "bus ", "control", "wire log", "operator", "process_request_thread")
        threads = {
            thread.name: thread.native_id or 0 for thread in threading.enumerate() if thread.name != "MainThread"
        }
        station_threads = {name: thread for name, thread in threads.items() if any(part in name for part in mine)}
        assert len(station_threads) >= len(mine) - 1  # the operator thinks when it has something to think about
        assert [name for name, thread in station_threads.items() if not urgent(thread)] == []


def test_without_a_station_the_client_says_how_to_start_one(make_config: Any) -> None:
    with pytest.raises(NotRunning, match="so-agent virtual-station"):
        inject(make_config(), {"state": True})


def test_the_program_says_when_it_is_ready_and_leaves_nothing_behind(short_dir: Path) -> None:
    file = short_dir / "station.yaml"
    file.write_text(yaml.safe_dump(settings(short_dir, "so100")))
    program = subprocess.Popen(
        [sys.executable, "-m", "agent.virtual", "-c", str(file), "--pace"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert program.stdout
        assert program.stdout.readline().startswith("virtual station ready")
        assert (short_dir / "state" / "dev" / "follower").exists()
        drawing = [int(pid) for pid in Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()]
        assert drawing
        assert not any(urgent(pid) for pid in drawing)
        assert urgent(program.pid) == may_be_urgent()
        program.send_signal(signal.SIGTERM)
        assert program.wait(10) == 0
    finally:
        program.kill()
        program.wait()
    assert not list((short_dir / "state" / "dev").iterdir())
    assert not list((short_dir / "state" / "run").iterdir())


def test_what_draws_is_started_again_when_it_crashes_but_not_in_a_circle(short_dir: Path) -> None:
    values = settings(short_dir)
    config = StationConfig(**values)
    file = short_dir / "station.yaml"
    file.write_text(yaml.safe_dump(values))
    words = [sys.executable, "-m", "agent.virtual", "-c", str(file)]
    program = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def drawing() -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()]

    try:
        assert program.stdout
        assert program.stdout.readline().startswith("virtual station ready")
        camera = make_camera(config, "front")
        camera.connect(warmup=False)
        camera.async_read(timeout_ms=3000)
        (first,) = drawing()
        os.kill(first, signal.SIGSEGV)
        until(lambda: drawing() not in ([], [first]), "another draws", 30)
        (second,) = drawing()
        assert not urgent(second)
        for _ in range(5):  # more than may be under way from the first
            camera.async_read(timeout_ms=30_000)
        camera.disconnect()
        assert inject(config, {"state": True})["state"]["cameras"]["front"]["fault"] == "none"
        os.kill(second, signal.SIGSEGV)
        assert program.wait(30) != 0
        assert program.stderr
        said = program.stderr.read()
        assert "ended by SIGSEGV, and is started again" in said
        assert "The virtual cameras stopped drawing" in said
    finally:
        program.kill()
        program.wait()
