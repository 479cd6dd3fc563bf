"""The delay that a policy is told to expect."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.inference.delay import WARM_UP, WINDOW, DelayWindow

delays = st.lists(st.floats(0, 100), max_size=3 * WINDOW)


@given(delays=delays, percent=st.floats(0, 100))
def test_a_percentile_is_a_delay_of_the_window_that_enough_others_do_not_exceed(
    delays: list[float], percent: float
) -> None:
    window = DelayWindow()
    for delay in delays:
        window.add(delay)
    counted = delays[WARM_UP:][-WINDOW:]
    found = window.percentile(percent)
    assert len(window) == len(counted)
    if not counted:
        assert found is None
        return
    assert found in counted
    assert sum(delay <= found for delay in counted) >= percent / 100 * len(counted) - 1e-9


def test_the_first_delay_does_not_count() -> None:
    window = DelayWindow()
    window.add(30.0)
    assert window.p50_s is None
    window.add(0.5)
    assert (window.p50_s, window.p95_s) == (0.5, 0.5)
    window.reset()
    window.add(30.0)
    assert window.p95_s is None, "after a reset it is cold again"


def test_a_single_spike_does_not_move_a_full_window_and_leaves_it_again() -> None:
    window = DelayWindow()
    for _ in range(WINDOW + WARM_UP):
        window.add(0.4)
    window.add(9.0)
    assert (window.p50_s, window.p95_s) == (0.4, 0.4)
    assert window.percentile(100) == 9.0
    for _ in range(WINDOW):
        window.add(0.4)
    assert window.percentile(100) == 0.4


def test_a_change_that_lasts_is_followed() -> None:
    window = DelayWindow()
    for _ in range(WINDOW):
        window.add(0.3)
    for _ in range(WINDOW):
        window.add(1.2)
    assert window.p50_s == 1.2


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf")])
def test_what_is_no_duration_is_refused(wrong: float) -> None:
    window = DelayWindow(warm_up=0)
    with pytest.raises(ValueError, match="no delay"):
        window.add(wrong)
    assert len(window) == 0
