"""Every reason for not taking part is one sentence, and none is forgotten."""

from dataclasses import replace
from datetime import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Federation
from agent.fl.conditions import Surroundings, against, inside

CALM = Surroundings(
    enrolled=True,
    paused=False,
    datasets=1,
    wanted=None,
    idle_s=3600.0,
    local=time(3, 0),
    free_memory_bytes=8 * 10**9,
    wanted_memory_bytes=3 * 10**9,
    free_disk_bytes=50 * 10**9,
    hottest_c=30.0,
)


def test_an_idle_cool_station_with_consent_joins() -> None:
    assert against(Federation(), CALM, joined=False) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"enrolled": False}, "takes part in no fleet"),
        ({"paused": True}, "paused"),
        ({"datasets": 0}, "no dataset may be learnt from"),
        ({"wanted": "the station is in mode teleop"}, "the arm is needed: the station is in mode teleop"),
        ({"idle_s": 60.0}, "joining in 9 min"),
        ({"free_memory_bytes": 10**9}, "only 1.0 GB of memory are free, 3.0 are wanted"),
        ({"free_disk_bytes": 10**9}, "only 1.0 GB of disk are free, 5 are wanted"),
        ({"hottest_c": 61.0}, "a servo has 61 °C"),
    ],
)
def test_each_reason_is_a_sentence(change: dict[str, object], sentence: str) -> None:
    reasons = against(Federation(), replace(CALM, **change), joined=False)  # type: ignore[arg-type]
    assert len(reasons) == 1
    assert sentence in reasons[0]


def test_outside_its_hours_a_station_stays_away() -> None:
    settings = Federation(hours=("22:00-06:00",))
    assert against(settings, CALM, joined=False) == []
    assert "it is 12:00" in against(settings, replace(CALM, local=time(12)), joined=False)[0]


def test_what_a_trainer_takes_itself_is_no_reason_to_leave() -> None:
    """It needs memory, and the servos of an arm that nobody moves need not be looked at."""
    working = replace(CALM, free_memory_bytes=10**9, hottest_c=61.0, idle_s=5.0)
    assert against(Federation(), working, joined=True) == []
    assert against(Federation(), replace(working, free_memory_bytes=5 * 10**8), joined=True)


def test_an_arm_that_does_not_report_temperatures_does_not_keep_a_station_away() -> None:
    assert against(Federation(), replace(CALM, hottest_c=None), joined=False) == []


@given(st.times(), st.times(), st.times())
def test_a_time_is_in_hours_or_in_their_complement(first: time, last: time, now: time) -> None:
    first, last = (each.replace(second=0, microsecond=0) for each in (first, last))
    if first == last:
        assert inside(f"{first:%H:%M}-{last:%H:%M}", now)
    else:
        assert inside(f"{first:%H:%M}-{last:%H:%M}", now) != inside(f"{last:%H:%M}-{first:%H:%M}", now)
