"""What trouble with the servos makes the arm do: a table."""

import pytest

from agent.clock import NS_PER_S
from agent.messages import Drive
from agent.robot.health import Verdict
from agent.robot.reflexes import STALL_RELEASE_S, Reflexes

HOT, STALLED, LOW = Verdict(hot=("elbow_flex",)), Verdict(stalled=("elbow_flex",)), Verdict(low_voltage=("gripper",))


def judge(
    reflexes: Reflexes,
    verdict: Verdict,
    drive: Drive = Drive.FOLLOW,
    at_s: float = 1.0,
    lost: tuple[str, ...] = (),
    commanded: bool = True,
    measured: bool = True,
) -> tuple[Drive, bool] | None:
    now_ns = round(at_s * NS_PER_S)
    reflex = reflexes.judge(verdict, lost, drive, now_ns, commanded=commanded, measured=measured)
    return (reflex.drive, reflex.here) if reflex else None


@pytest.mark.parametrize("drive", [Drive.HOLD, Drive.ALIGN, Drive.FOLLOW, Drive.EXECUTE, Drive.PARK])
def test_a_healthy_arm_is_left_alone(drive: Drive) -> None:
    assert judge(Reflexes(), Verdict(), drive) is None


def test_heat_parks_and_goes_on_parking() -> None:
    reflexes = Reflexes()
    assert judge(reflexes, HOT) == (Drive.PARK, False)
    assert judge(reflexes, HOT, Drive.PARK) is None
    assert judge(Reflexes(), HOT, Drive.HOLD) == (Drive.PARK, False)


def test_heat_waits_for_a_reading_and_releases_what_cannot_be_parked() -> None:
    assert judge(Reflexes(), HOT, measured=False) is None
    assert judge(Reflexes(), HOT, commanded=False) == (Drive.LIMP, False)
    assert judge(Reflexes(), HOT, lost=("wrist_flex",)) == (Drive.LIMP, False)


def test_a_stall_holds_where_it_is_once_and_releases_when_it_lasts() -> None:
    reflexes = Reflexes()
    assert judge(reflexes, STALLED, at_s=1.0) == (Drive.HOLD, True)
    assert judge(reflexes, STALLED, Drive.HOLD, at_s=1.0 + STALL_RELEASE_S) is None
    assert judge(reflexes, STALLED, Drive.HOLD, at_s=1.1 + STALL_RELEASE_S) == (Drive.LIMP, False)


def test_a_stall_that_ends_begins_anew() -> None:
    reflexes = Reflexes()
    judge(reflexes, STALLED, at_s=1.0)
    assert judge(reflexes, Verdict(), Drive.HOLD, at_s=2.0) is None
    assert judge(reflexes, STALLED, at_s=9.0) == (Drive.HOLD, True)
    reflexes.forget_stall()
    assert judge(reflexes, STALLED, at_s=99.0) == (Drive.HOLD, True)


def test_a_servo_that_rebooted_holds_the_others_and_keeps_a_person_from_moving() -> None:
    reflexes = Reflexes()
    assert judge(reflexes, Verdict(), Drive.HOLD, lost=("gripper",)) == (Drive.HOLD, False)
    assert judge(reflexes, Verdict(), Drive.HOLD, lost=("gripper",)) is None, "known"
    assert judge(reflexes, Verdict(), Drive.FOLLOW, lost=("gripper",)) == (Drive.HOLD, False)
    reflexes = Reflexes()
    reflexes.adopt(["gripper"])
    assert judge(reflexes, Verdict(), Drive.HOLD, lost=("gripper",)) is None, "known since the arm was taken over"


def test_low_voltage_stops_motion_and_parking_only_when_it_is_new() -> None:
    reflexes = Reflexes()
    assert judge(reflexes, LOW, Drive.PARK) == (Drive.HOLD, False)
    assert judge(reflexes, LOW, Drive.PARK) is None, "a person asked for it all the same"
    assert judge(reflexes, LOW, Drive.FOLLOW) == (Drive.HOLD, False)
    assert judge(reflexes, LOW, Drive.HOLD) is None
