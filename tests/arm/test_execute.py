"""A task as the arm sees it: chunks come in on a socket, goals go out on the wire."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from agent.clock import NS_PER_S
from agent.config import StationConfig
from agent.errors import DeviceFault, EstopLatched, Refused
from agent.messages import ArmDrive, ArmEstop, ArmQuery, ArmReset, Drive, Execution, Joints, Source, Tick, encode
from agent.policy_messages import Chunk
from agent.robot.execution import FIRST_CHUNK_S, MAX_CHUNK_BYTES, NO_CHUNK, TICKS_LATE_S, Executor
from agent.transport import endpoint
from tests.arm.bench import SLOW_STEP_DEG, Bench, Nursery, biggest_difference, running

PERIOD_NS = NS_PER_S // 30
POSE: Joints = (20.0, -30.0, 30.0, 10.0, 5.0, 50.0)
COUNT_DEG = 360 / 4096
LEAST_SEAM = 0.5
"""A limit small enough to tell a merge's step from what the chunks ask for."""


class Policy:
    """Publishes chunks where the arm expects the policy process."""

    def __init__(self, path: Path) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XPUB)  # it sees who subscribes
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._socket.bind(endpoint(path))
        self._seq = 0

    def wait_for_the_arm(self) -> None:
        assert self._socket.poll(5000), "the arm does not listen"
        self._socket.recv()

    def send(self, generation: int, start_ns: int, actions: list[Joints], seq: int | None = None) -> Chunk:
        self._seq = self._seq + 1 if seq is None else seq
        chunk = Chunk(generation, self._seq, start_ns, PERIOD_NS, tuple(actions), "test", 0)
        self.send_raw(encode(chunk))
        return chunk

    def send_raw(self, *parts: bytes) -> None:
        self._socket.send_multipart(parts)

    def close(self) -> None:
        self._socket.close()


class Station:
    """A bench with a policy."""

    def __init__(self, bench: Bench, policy: Policy) -> None:
        self.bench, self.policy = bench, policy

    def start(self) -> int:
        pid = self.bench.start()
        self.policy.wait_for_the_arm()
        return pid

    def execute(self, generation: int = 1) -> int:
        """Begin a task; its plan time at a tick from now."""
        self.bench.ask(ArmDrive(Drive.EXECUTE, "test", generation))
        return self.plan_ns(generation)

    def plan_ns(self, generation: int = 1) -> int:
        tick = self.tick(lambda tick: tick.generation == generation)
        assert tick.plan_ns is not None
        return tick.plan_ns

    def tick(self, wanted: Callable[[Tick], bool], within_s: float = 3.0) -> Tick:
        """The first tick from now on that is wanted."""
        begin = len(self.bench.ticks)
        self.bench.wait_until(lambda: any(wanted(tick) for tick in self.bench.ticks[begin:]), within_s)
        return next(tick for tick in self.bench.ticks[begin:] if wanted(tick))

    def execution(self) -> Execution:
        execution = self.bench.ask(ArmQuery()).execution
        assert execution is not None
        return execution


@pytest.fixture
def make_station(
    make_config: Callable[..., StationConfig], nursery: Nursery, hardware: None
) -> Iterator[Callable[..., Station]]:
    """Makes a station; keyword arguments go into the section `policy` of its configuration."""
    with ExitStack() as stack:

        def make(hz: int = 30, **policy: Any) -> Station:
            robot = make_config().model_dump(mode="json")["robot"] | {"control_hz": hz}
            config = make_config(robot=robot, policy=policy, recording={"fps": 10})
            bench = stack.enter_context(running(config, nursery))
            publisher = Policy(config.paths.policy_pub)
            stack.callback(publisher.close)
            bench.follower.set_joints_deg(POSE)
            return Station(bench, publisher)

        yield make


@pytest.fixture
def station(make_station: Callable[..., Station]) -> Station:
    return make_station()


def shifted(degrees: float, of: Joints = POSE) -> Joints:
    return (of[0] + degrees, of[1] + degrees, of[2] - degrees, of[3], of[4], of[5])


def ramp(actions: int, step: float = 0.4, since: float = 0.0) -> list[Joints]:
    """A slow motion away from the pose at which the arm stands."""
    return [shifted(since + step * i) for i in range(actions)]


def asked(chunk: Chunk, plan_ns: int) -> Joints:
    where = min(max((plan_ns - chunk.start_ns) / chunk.period_ns, 0), len(chunk.actions) - 1)
    low = int(where)
    high = min(low + 1, len(chunk.actions) - 1)
    pairs = zip(chunk.actions[low], chunk.actions[high], strict=True)
    a, b, c, d, e, f = (x + (y - x) * (where - low) for x, y in pairs)
    return (a, b, c, d, e, f)


def on_the_wire(bench: Bench, since: int = 0) -> list[Joints]:
    """The goals that the servos got, in units of joints."""
    scale = bench.follower.scale
    offsets = [bench.follower.servo(i + 1).get(31) for i in range(6)]
    return [
        tuple(scale.to_joint(i, goals[i + 1] + offsets[i]) for i in range(6))  # type: ignore[misc]
        for _, goals in bench.follower.goals.since(since)
    ]


# --- what is executed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [30, 100])
def test_the_goals_on_the_wire_are_the_chunk_at_its_time(make_station: Callable[..., Station], hz: int) -> None:
    station = make_station(hz=hz, crossfade_s=0.0)
    station.start()
    bench = station.bench
    start_ns = station.execute()
    mark, begin = bench.follower.goals.count, len(bench.ticks)
    chunk = station.policy.send(1, start_ns, ramp(45))
    station.tick(lambda tick: tick.source is Source.HOLD and tick.plan_ns == start_ns + 45 * PERIOD_NS)
    ticks = [tick for tick in bench.ticks[begin:] if tick.source is Source.POLICY]
    assert len(ticks) == pytest.approx(1.5 * hz, abs=0.1 * hz)
    goals = on_the_wire(bench, mark)
    for tick in ticks:
        assert tick.plan_ns is not None
        assert tick.sent is not None
        expected = asked(chunk, tick.plan_ns)
        assert biggest_difference(tick.sent, expected) <= COUNT_DEG
        assert min(biggest_difference(goal, tick.sent) for goal in goals) < 1e-6
    assert ticks[0].plan_ns == start_ns, "it begins with its first action"
    execution = station.execution()
    assert (execution.chunks, execution.dropped, execution.depth) == (1, {}, 0)


def test_a_task_begins_without_a_jump_and_a_merge_stays_within_its_limit(make_station: Callable[..., Station]) -> None:
    station = make_station(max_seam_deg=LEAST_SEAM)
    station.start()
    bench = station.bench
    start_ns = station.execute()
    station.policy.send(1, start_ns, [shifted(12.0)] * 90)  # far from where the arm stands
    bench.wait_until(lambda: biggest_difference(bench.follower.joints_deg(), shifted(12.0)) < 1.0, 4)
    station.policy.send(1, station.plan_ns(), [shifted(6.0)] * 90)
    bench.wait_until(lambda: biggest_difference(bench.follower.joints_deg(), shifted(6.0)) < 1.0, 4)
    assert bench.biggest_step_deg() <= LEAST_SEAM + COUNT_DEG
    execution = station.execution()
    assert 0.2 < execution.seam <= execution.seam_max <= LEAST_SEAM + 1e-6


def test_a_late_chunk_goes_on_where_time_stands_and_an_old_one_is_dropped(station: Station) -> None:
    station.start()
    start_ns = station.execute()
    first = station.policy.send(1, start_ns, ramp(60))
    here = station.tick(lambda tick: (tick.plan_ns or 0) > 20 * PERIOD_NS)
    assert here.plan_ns is not None
    begin = len(station.bench.ticks)
    # Made from an observation 15 ticks ago; it agrees with the one before.
    station.policy.send(
        1, here.plan_ns - 15 * PERIOD_NS, [asked(first, here.plan_ns + i * PERIOD_NS) for i in range(-15, 30)]
    )
    station.policy.send(1, here.plan_ns - 19 * PERIOD_NS, [POSE] * 60)
    station.tick(lambda tick: (tick.plan_ns or 0) > 40 * PERIOD_NS)
    for tick in station.bench.ticks[begin:]:
        assert tick.sent is not None
        assert tick.plan_ns is not None
        assert biggest_difference(tick.sent, asked(first, tick.plan_ns)) < 0.5
    assert station.execution().dropped == {"out of order": 1}


# --- what is not ----------------------------------------------------------------------------------------


def test_what_is_no_chunk_of_this_task_is_counted_and_dropped(station: Station) -> None:
    station.start()
    bench, policy = station.bench, station.policy
    start_ns = station.execute(generation=7)
    good = encode(Chunk(7, 50, start_ns, PERIOD_NS, (POSE,) * 9, "test", 0))
    values = msgspec.msgpack.decode(good)
    wrong = [shifted(-40.0)] * 30
    policy.send(6, start_ns, wrong)
    policy.send(8, start_ns, wrong)
    policy.send(7, start_ns, [(float("nan"), *POSE[1:])] * 30)
    policy.send(7, start_ns, [(float("inf"), *POSE[1:])] * 30)
    policy.send(7, start_ns, [])
    policy.send_raw(msgspec.msgpack.encode(values | {"actions": [POSE[:5]] * 9}))
    policy.send_raw(msgspec.msgpack.encode(values | {"actions": [(*POSE, 1.0)] * 9}))
    policy.send_raw(msgspec.msgpack.encode(values | {"policy": "x" * MAX_CHUNK_BYTES}))
    policy.send_raw(good[:-9])
    policy.send_raw(good.replace(b"policy\xa4test", b"policy\xa4te\xff\xfe"))  # not UTF-8
    policy.send_raw(good[:1] + good[1:12] + b"\xa1x" + b"\x91" * 50_000)  # nested deeper than anybody may
    policy.send_raw(good, b"and a payload")
    bench.wait(lambda report: report.execution is not None and sum(report.execution.dropped.values()) >= 12, 3)
    execution = station.execution()
    assert execution.dropped == {"other generation": 2, "malformed": 3, NO_CHUNK: 7}
    assert execution.chunks == 0
    assert biggest_difference(bench.follower.joints_deg(), POSE) < 0.2
    assert all(tick.source is Source.HOLD for tick in bench.wait_for_ticks(5))
    policy.send(7, start_ns, ramp(9))
    assert station.tick(lambda tick: tick.source is Source.POLICY).generation == 7


def test_a_flood_of_nonsense_does_not_hold_up_the_loop(station: Station) -> None:
    station.start()
    station.execute()
    station.policy.send(1, 0, [POSE] * 200)
    begin = len(station.bench.ticks)
    for _ in range(3000):
        station.policy.send(5, 0, [shifted(30.0)] * 50)
    ticks = [*station.bench.ticks[begin:], *station.bench.wait_for_ticks(15)]
    assert biggest_difference(station.bench.follower.joints_deg(), POSE) < 0.2
    assert all(tick.source is Source.POLICY for tick in ticks)
    loop = station.bench.ask(ArmQuery()).loop
    assert loop is not None
    assert abs(loop.rate_hz / 30 - 1) < 0.1


def test_a_task_needs_a_generation_of_its_own(station: Station) -> None:
    station.start()
    bench = station.bench
    with pytest.raises(Refused, match="no policy task"):
        bench.ask(ArmDrive(Drive.EXECUTE, "test"))
    assert bench.ask(ArmQuery()).drive is Drive.LIMP
    station.execute(generation=5)
    for generation in (5, 4, -1):
        with pytest.raises(Refused):
            bench.ask(ArmDrive(Drive.EXECUTE, "test", generation))
    assert bench.ask(ArmQuery()).drive is Drive.EXECUTE, "a refusal changes nothing"
    station.policy.send(5, 0, ramp(30))
    station.tick(lambda tick: tick.source is Source.POLICY)
    assert station.execute(generation=6) == 0, "another task begins, at its own time 0"
    station.policy.send(5, 0, [shifted(-40.0)] * 30)
    bench.wait(lambda report: report.execution is not None and "other generation" in report.execution.dropped, 2)
    assert all(tick.source is Source.HOLD for tick in bench.wait_for_ticks(5))


def test_an_arm_that_must_not_move_does_not_begin_a_task(station: Station) -> None:
    station.start()
    for servo in range(1, 7):
        station.bench.follower.servo(servo).present = False
    station.bench.wait(lambda report: report.drive is Drive.OFFLINE, 2)
    with pytest.raises(DeviceFault):
        station.bench.ask(ArmDrive(Drive.EXECUTE, "test", 1))
    assert station.bench.ask(ArmQuery()).drive is Drive.OFFLINE


# --- starvation -----------------------------------------------------------------------------------------


def test_a_starved_arm_holds_then_somebody_knows_then_the_task_stops(station: Station) -> None:
    station.start()
    bench = station.bench
    start_ns = station.execute()
    bench.wait_for_ticks(25)
    assert not station.execution().starved, "waiting for the first chunk is not starving"
    station.policy.send(1, start_ns, ramp(15))
    starved = station.tick(lambda tick: tick.source is Source.HOLD and (tick.plan_ns or 0) > 0)
    began_ns = starved.due_ns
    last = [tick for tick in bench.ticks if tick.source is Source.POLICY][-1]
    assert last.sent is not None
    bench.wait(lambda report: report.execution is not None and report.execution.starved, 1.5)
    alarm = next(r for r in bench.reports if r.execution and r.execution.starved)
    assert 0.5 <= (alarm.at_ns - began_ns) / 1e9 < 0.7, "at once, not with the next regular report"
    assert alarm.drive is Drive.EXECUTE
    bench.wait(lambda report: report.drive is Drive.HOLD, 2.5)
    stopped = next(r for r in bench.reports if r.drive is Drive.HOLD and r.at_ns > began_ns)
    assert 2.0 <= (stopped.at_ns - began_ns) / 1e9 < 2.3
    assert stopped.reason == "no action came from the policy for 2 s; the task is stopped"
    held = [tick for tick in bench.ticks if tick.due_ns >= began_ns]
    assert all(tick.sent and biggest_difference(tick.sent, last.sent) < 1e-6 for tick in held)
    assert {tick.plan_ns for tick in held if tick.generation} == {start_ns + 15 * PERIOD_NS}
    execution = station.execution()
    assert execution.generation == 1
    assert execution.starved_ticks == pytest.approx(60, abs=3)
    assert execution.ticks == pytest.approx(75, abs=4)
    assert (execution.starving_s, execution.starved) == (0.0, False), "it is over"


def test_a_starved_arm_goes_on_with_the_next_chunk_without_a_jump(station: Station) -> None:
    station.start()
    bench = station.bench
    start_ns = station.execute()
    station.policy.send(1, start_ns, ramp(15))
    here = station.tick(lambda tick: tick.source is Source.HOLD and (tick.plan_ns or 0) > 0)
    bench.wait_for_ticks(20)
    assert here.plan_ns == station.plan_ns()
    station.policy.send(1, here.plan_ns, ramp(30, since=10.0))
    station.tick(lambda tick: tick.source is Source.POLICY)
    bench.wait_until(lambda: biggest_difference(bench.follower.joints_deg(), shifted(10.0 + 29 * 0.4)) < 1.0, 3)
    assert bench.biggest_step_deg() <= 0.4 + 2.0 + COUNT_DEG
    assert station.execution().starving_s < 1.0


# --- the end of a task ------------------------------------------------------------------------------------


@pytest.mark.parametrize("drive", [Drive.HOLD, Drive.LIMP, Drive.PARK])
def test_a_task_that_was_left_gets_nothing_through(station: Station, drive: Drive) -> None:
    station.start()
    station.execute()
    station.policy.send(1, 0, ramp(200))
    station.tick(lambda tick: tick.source is Source.POLICY)
    assert station.bench.drive(drive).drive is drive
    station.policy.send(1, 0, [shifted(-40.0)] * 200)
    station.bench.wait(lambda r: r.execution is not None and r.execution.dropped == {"other generation": 1}, 2)
    for tick in station.bench.wait_for_ticks(5):
        assert tick.source is not Source.POLICY
        assert (tick.generation, tick.plan_ns) == (0, None)


def test_an_estop_ends_a_task_within_100_ms(station: Station) -> None:
    station.start()
    bench = station.bench
    station.execute()
    station.policy.send(1, 0, ramp(200))
    station.tick(lambda tick: tick.source is Source.POLICY)
    began_ns = time.monotonic_ns()
    report = bench.ask(ArmEstop("test"))
    assert report.drive is Drive.ESTOP
    assert report.estop_verified is True
    assert report.at_ns - began_ns < 100e6
    mark = bench.follower.goals.count
    station.policy.send(1, 0, ramp(200))
    bench.wait_for_ticks(10)
    assert bench.follower.goals.count == mark
    with pytest.raises(EstopLatched):
        bench.ask(ArmDrive(Drive.EXECUTE, "test", 2))
    assert bench.ask(ArmReset("test")).drive is Drive.HOLD
    station.policy.send(1, 0, ramp(200))
    assert all(tick.source is Source.HOLD for tick in bench.wait_for_ticks(5)), "it does not go on by itself"


def test_a_person_takes_over_without_a_jump(station: Station) -> None:
    station.start()
    bench = station.bench
    bench.leader.set_joints_deg(shifted(-10.0))
    station.execute()
    station.policy.send(1, 0, ramp(200))
    station.tick(lambda tick: (tick.plan_ns or 0) > 20 * PERIOD_NS)
    bench.drive(Drive.ALIGN)
    bench.wait(lambda report: report.drive is Drive.FOLLOW, 4)
    bench.wait_until(lambda: biggest_difference(bench.follower.joints_deg(), bench.leader.joints_deg()) < 0.5, 3)
    assert bench.biggest_step_deg() < SLOW_STEP_DEG
    station.execute(generation=2)
    station.policy.send(2, 0, [shifted(-9.0)] * 60)
    bench.wait_until(lambda: biggest_difference(bench.follower.joints_deg(), shifted(-9.0)) < 0.5, 3)
    assert bench.biggest_step_deg() < SLOW_STEP_DEG + 2.0


def test_a_new_arm_process_adopts_the_arm_and_knows_of_no_task(station: Station) -> None:
    pid = station.start()
    bench = station.bench
    station.execute(generation=3)
    station.policy.send(3, 0, ramp(60))
    station.tick(lambda tick: (tick.plan_ns or 0) > 10 * PERIOD_NS)
    bench.kill(pid)
    station.start()
    report = bench.ask(ArmQuery())
    assert report.drive is Drive.HOLD
    assert "torque was on" in report.reason
    assert report.execution is None
    before = bench.follower.joints_deg()
    station.policy.send(3, 0, [shifted(-40.0)] * 200)
    assert all(tick.source is Source.HOLD for tick in bench.wait_for_ticks(15))
    assert biggest_difference(bench.follower.joints_deg(), before) < 0.5
    assert bench.biggest_step_deg() < SLOW_STEP_DEG


def test_an_arm_whose_agent_is_gone_holds_although_chunks_come(station: Station) -> None:
    station.start()
    station.execute()
    station.policy.send(1, 0, [POSE] * 900)
    station.tick(lambda tick: tick.source is Source.POLICY)
    station.bench.heartbeats.clear()
    assert 2 < station.bench.wait(lambda report: report.supervisor_lost and report.drive is Drive.HOLD, 5) < 3.7
    assert station.bench.wait_for_ticks(2)[-1].generation == 0


# --- times too long to wait for --------------------------------------------------------------------------


class HandClock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.ns = NS_PER_S

    def now_ns(self) -> int:
        return self.ns

    def wall_s(self) -> float:
        return 0.0


@pytest.mark.parametrize("tick_s", [1 / 30, 0.06, 0.1, 0.2])
def test_a_policy_that_died_stops_the_task_in_time_however_slow_the_arm_ticks(
    make_config: Callable[..., StationConfig], tick_s: float
) -> None:
    config = make_config(policy={"starve_stop_s": 1.0})
    config.paths.run.mkdir(parents=True)
    clock, policy = HandClock(), Policy(config.paths.policy_pub)
    executor = Executor(config, clock)
    try:
        policy.wait_for_the_arm()
        executor.begin(1)
        policy.send(1, 0, [POSE] * 50)
        while executor.next(POSE) is None:
            executor.receive()
            clock.ns += 1
        came_ns = clock.ns
        while executor.overdue() is None:
            clock.ns += round(tick_s * NS_PER_S)
            executor.next(POSE)
        took_s, promised_s = (clock.ns - came_ns) / NS_PER_S, 50 / 30 + 1.0
        assert promised_s <= took_s <= promised_s + TICKS_LATE_S + 2 * tick_s
        assert "came from the policy for" in str(executor.overdue())
    finally:
        executor.close()
        policy.close()


@pytest.mark.parametrize(("hang_s", "allowed_s"), [(1.0, FIRST_CHUNK_S), (30.0, 30.0)])
def test_a_first_chunk_may_take_longer(
    make_config: Callable[..., StationConfig], hang_s: float, allowed_s: float
) -> None:
    config = make_config(policy={"hang_s": hang_s})
    config.paths.run.mkdir(parents=True)
    clock = HandClock()
    executor = Executor(config, clock)
    try:
        executor.begin(1)
        clock.ns += round((allowed_s - 0.1) * NS_PER_S)
        assert executor.next(POSE) is None
        assert executor.overdue() is None
        clock.ns += round(0.2 * NS_PER_S)
        assert executor.next(POSE) is None
        assert executor.overdue() == f"no first action came from the policy for {allowed_s:g} s; the task is stopped"
        assert not executor.starved
        report = executor.report()
        assert report is not None
        assert report.starving_s == pytest.approx(allowed_s + 0.1)
        assert (report.ticks, report.starved_ticks) == (0, 0)
    finally:
        executor.close()
