"""The safety filter: what it lets through, whatever is asked."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import Safety
from agent.messages import Joints
from agent.robot.calibration import JointCalibration, Scale
from agent.robot.safety import Limits, clamp, filter_action
from agent.robot.trajectory import approach, distance, duration_s

LIMITS = Limits(
    low=(-100.0, -90.0, -95.0, -90.0, -160.0, 0.0),
    high=(100.0, 90.0, 95.0, 90.0, 160.0, 100.0),
    speed=(240.0, 240.0, 240.0, 240.0, 240.0, 400.0),
)
ANYTHING = st.floats(allow_nan=True, allow_infinity=True)
FINITE = st.floats(-1e6, 1e6)
PERIOD = st.floats(0.001, 0.2)


def pose(values: st.SearchStrategy[float]) -> st.SearchStrategy[Joints]:
    return st.tuples(values, values, values, values, values, values)


INSIDE = st.tuples(*[st.floats(low, high) for low, high in zip(LIMITS.low, LIMITS.high, strict=True)])


@given(pose(FINITE), INSIDE, PERIOD)
def test_whatever_is_sent_is_in_range_and_no_faster_than_allowed(wanted: Joints, before: Joints, dt_s: float) -> None:
    sent, changes = filter_action(wanted, before, LIMITS, dt_s)
    for i, value in enumerate(sent):
        assert LIMITS.low[i] <= value <= LIMITS.high[i]
        assert abs(value - before[i]) <= LIMITS.speed[i] * dt_s + 1e-9
    changed = {name for name, wanted_, sent_ in zip(range(6), wanted, sent, strict=True) if abs(wanted_ - sent_) > 1e-5}
    assert len({change.joint for change in changes}) >= len(changed)


@given(INSIDE, INSIDE)
def test_an_allowed_action_passes_unchanged(wanted: Joints, before: Joints) -> None:
    sent, changes = filter_action(wanted, before, LIMITS, 10.0)
    assert sent == wanted
    assert changes == ()


@given(pose(ANYTHING), INSIDE, PERIOD)
def test_a_value_that_is_not_finite_is_refused(wanted: Joints, before: Joints, dt_s: float) -> None:
    if all(math.isfinite(value) for value in wanted):
        filter_action(wanted, before, LIMITS, dt_s)
    else:
        with pytest.raises(Safety, match="finite"):
            filter_action(wanted, before, LIMITS, dt_s)


@pytest.mark.parametrize("count", [0, 5, 7])
def test_an_action_of_the_wrong_shape_is_refused(count: int) -> None:
    with pytest.raises(Safety, match=f"has {count}"):
        filter_action([0.0] * count, (0.0,) * 6, LIMITS, 0.03)


@pytest.mark.parametrize("dt_s", [0.0, -1.0, math.nan, math.inf])
def test_time_that_makes_no_sense_is_refused(dt_s: float) -> None:
    with pytest.raises(Safety):
        filter_action([0.0] * 6, (0.0,) * 6, LIMITS, dt_s)


@given(pose(FINITE), pose(st.floats(-200, 200)), PERIOD)
def test_an_arm_outside_its_range_is_never_pushed_further_out(wanted: Joints, before: Joints, dt_s: float) -> None:
    sent, _ = filter_action(wanted, before, LIMITS, dt_s)
    for i, value in enumerate(sent):
        assert min(before[i], LIMITS.low[i]) <= value <= max(before[i], LIMITS.high[i])


@given(pose(st.floats(-200, 200)), PERIOD)
def test_holding_never_moves_an_arm_wherever_it_is(before: Joints, dt_s: float) -> None:
    assert filter_action(before, before, LIMITS, dt_s) == (before, ())


def test_limits_keep_a_margin_from_the_stops_but_let_the_gripper_close() -> None:
    from agent.config import Safety as SafetyConfig

    joint = JointCalibration(1, 0, 0, 1000, 3000)
    names = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
    limits = Limits.of(SafetyConfig(range_margin_deg=2), Scale(dict.fromkeys(names, joint)))
    assert limits.high[0] == pytest.approx(1000 / 4095 * 360 - 2)
    assert limits.low[0] == -limits.high[0]
    assert (limits.low[5], limits.high[5]) == (0, 100)
    assert clamp((500.0, 0, 0, 0, 0, -5.0), limits)[0] == limits.high[0]


@given(INSIDE, INSIDE, st.floats(5, 90))
def test_a_slow_move_arrives_on_time_with_all_joints_together(start: Joints, goal: Joints, speed: float) -> None:
    dt_s = 0.1
    at = start
    ticks = 0
    while at != goal:
        after = approach(at, goal, speed, dt_s)
        assert distance(at, after) <= speed * dt_s + 1e-9
        if after != goal:
            shares = {round((a - s) / (g - s), 3) for a, s, g in zip(after, start, goal, strict=True) if abs(g - s) > 1}
            assert len(shares) <= 1 or max(shares) - min(shares) < 0.01
        at, ticks = after, ticks + 1
    assert ticks <= duration_s(start, goal, speed) / dt_s + 1.001
