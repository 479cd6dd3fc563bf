"""Where each drive takes the arm, tick by tick, with time in the tests' hands."""

from collections.abc import Iterator
from typing import Any

import pytest

from agent.messages import Drive, Joints, Source
from agent.robot.course import SOFT_START_S, Course
from agent.robot.execution import Executor
from agent.robot.safety import Limits
from tests.daemon.clocks import HandClock

HERE: Joints = (0.0, 0.0, 0.0, 0.0, 0.0, 50.0)
THERE: Joints = (60.0, 30.0, 0.0, 0.0, 0.0, 50.0)
HZ, SLOW, FAST = 30, 30.0, 240.0
NEAR = Limits(low=(-90.0,) * 5 + (0.0,), high=(90.0,) * 5 + (100.0,), speed=(FAST,) * 6)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def course(make_config: Any, clock: HandClock) -> Iterator[Course]:
    safety = {"slow_speed_deg_s": SLOW, "max_speed_deg_s": FAST, "park": {"shoulder_lift": -98.0}}
    config = make_config(safety=safety)
    executor = Executor(config, clock)
    yield Course(config, clock, executor)
    executor.close()


def test_aligning_moves_all_joints_slowly_and_in_proportion(course: Course) -> None:
    pose, source = course.next(Drive.ALIGN, HERE, THERE, None)
    assert source is Source.ALIGN
    assert pose == pytest.approx((SLOW / HZ, SLOW / HZ / 2, 0, 0, 0, 50))


def test_following_begins_at_the_slow_speed_and_is_free_after_the_soft_start(course: Course, clock: HandClock) -> None:
    course.begin()
    steps = []
    for _ in range(3):
        pose, source = course.next(Drive.FOLLOW, HERE, THERE, None)
        assert source is Source.LEADER
        steps.append(pose[0])
        clock.pass_s(SOFT_START_S / 2)
    assert steps == pytest.approx([SLOW / HZ, (SLOW + FAST) / 2 / HZ, THERE[0]])


@pytest.mark.parametrize("drive", [Drive.ALIGN, Drive.FOLLOW, Drive.EXECUTE, Drive.HOLD])
def test_without_a_leader_or_an_action_the_arm_stays_at_its_last_command(course: Course, drive: Drive) -> None:
    assert course.next(drive, HERE, None, None) == (HERE, Source.HOLD)


def test_a_stalled_arm_stays_where_it_was_found(course: Course) -> None:
    course.stay_at = THERE
    assert course.next(Drive.HOLD, HERE, None, None) == (THERE, Source.HOLD)


def test_parking_goes_slowly_as_far_as_this_arm_can(course: Course) -> None:
    command, ticks = HERE, 0
    while command != course.park_pose(NEAR):
        command, source = course.next(Drive.PARK, command, THERE, NEAR)
        assert source is Source.PARK
        ticks += 1
    assert command[1] == -90.0
    assert ticks == pytest.approx(90.0 / SLOW * HZ, abs=1)
    assert course.parking_s(HERE, NEAR) == pytest.approx(90.0 / SLOW)
    assert course.park_pose(None)[1] == -98.0
