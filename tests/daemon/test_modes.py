"""The mode table: every allowed edge can be walked, every other is refused."""

from itertools import product

import pytest

from agent.clock import SystemClock
from agent.errors import Refused
from agent.modes import TABLE, WHAT_TO_DO, Mode, ModeMachine, Transition, steps


def machine_in(mode: Mode) -> tuple[ModeMachine, list[Transition]]:
    log: list[Transition] = []
    machine = ModeMachine(SystemClock(), log.append)
    machine.mode = mode
    machine.reason = "a test put it there"
    return machine, log


@pytest.mark.parametrize(("before", "after"), [(before, after) for before in Mode for after in TABLE[before]])
def test_every_allowed_edge_is_walked_and_logged(before: Mode, after: Mode) -> None:
    machine, log = machine_in(before)
    machine.to(after, "because")
    assert machine.mode is after
    assert machine.reason == "because"
    assert [(entry.before, entry.after, entry.cause) for entry in log] == [(before, after, "because")]


@pytest.mark.parametrize(
    ("before", "after"),
    [(before, after) for before, after in product(Mode, Mode) if before is not after and after not in TABLE[before]],
)
def test_every_other_edge_is_refused_and_says_what_to_do(before: Mode, after: Mode) -> None:
    machine, log = machine_in(before)
    with pytest.raises(Refused) as refusal:
        machine.to(after, "because")
    assert str(before) in refusal.value.message
    assert refusal.value.hint == WHAT_TO_DO[before]
    assert machine.mode is before
    assert log == []


def test_entering_the_same_mode_renews_the_reason_without_a_transition() -> None:
    machine, log = machine_in(Mode.HOLD)
    machine.to(Mode.HOLD, "the leader went away")
    assert machine.reason == "the leader went away"
    assert log == []


def test_estop_can_be_entered_from_every_mode() -> None:
    assert {mode for mode in Mode if Mode.ESTOP not in TABLE[mode]} == {Mode.ESTOP}


def test_nothing_moves_the_arm_directly_out_of_estop_or_fault() -> None:
    moving = {Mode.ALIGNING, Mode.TELEOP, Mode.EXECUTING, Mode.HOMING}
    assert not TABLE[Mode.ESTOP] & moving
    assert not TABLE[Mode.FAULT] & moving


def test_every_mode_can_be_left_and_reached() -> None:
    assert set(TABLE) == set(Mode)
    assert all(TABLE[mode] for mode in Mode)
    reached = frozenset[Mode]().union(*TABLE.values())
    assert reached == set(Mode) - {Mode.STARTING}


@pytest.mark.parametrize(
    ("before", "after", "way"),
    [
        (Mode.HOLD, Mode.TELEOP, (Mode.ALIGNING, Mode.TELEOP)),
        (Mode.FAULT, Mode.TELEOP, (Mode.HOLD, Mode.ALIGNING, Mode.TELEOP)),
        (Mode.TELEOP, Mode.IDLE, (Mode.HOLD, Mode.IDLE)),
        (Mode.TELEOP, Mode.ESTOP, (Mode.ESTOP,)),
        (Mode.STOPPING, Mode.TELEOP, ()),
    ],
)
def test_modes_that_passed_unseen_are_walked_one_edge_at_a_time(before: Mode, after: Mode, way: tuple[Mode]) -> None:
    assert steps(before, after) == way
