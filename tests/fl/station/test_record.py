"""When people's judgement is enough to go back to the policy before."""

import random

import pytest

from agent.fl.record import probability_below, probability_less, worse


def test_a_policy_that_fails_where_the_last_one_did_not_is_worse() -> None:
    assert "1 of its 5 judged tasks were successes, 9 of 10 before" in worse([True, *[False] * 4], [True] * 9 + [False])


def test_bad_luck_is_not_enough() -> None:
    assert worse([True, False, True, True, False], [True] * 7 + [False] * 3) == ""


def test_four_tasks_say_nothing() -> None:
    assert worse([False] * 4, [True] * 50) == ""


def test_without_a_record_of_the_last_one_only_failing_always_counts() -> None:
    assert worse([False] * 5, []) != ""
    assert worse([True, *[False] * 4], []) == ""


@pytest.mark.parametrize(
    ("new", "new_of", "old", "old_of"), [(1, 5, 8, 10), (5, 5, 8, 10), (0, 5, 0, 5), (20, 50, 30, 50)]
)
def test_the_closed_form_is_what_drawing_gives(new: int, new_of: int, old: int, old_of: int) -> None:
    dice = random.Random(0)
    drawn = sum(
        dice.betavariate(new + 1, new_of - new + 1) < dice.betavariate(old + 1, old_of - old + 1) for _ in range(20_000)
    )
    assert probability_less(new, new_of, old, old_of) == pytest.approx(drawn / 20_000, abs=0.02)


@pytest.mark.parametrize(("successes", "of"), [(0, 5), (2, 5), (5, 5)])
def test_the_tail_is_what_drawing_gives(successes: int, of: int) -> None:
    dice = random.Random(0)
    drawn = sum(dice.betavariate(successes + 1, of - successes + 1) < 0.4 for _ in range(20_000))
    assert probability_below(successes, of, 0.4) == pytest.approx(drawn / 20_000, abs=0.02)
