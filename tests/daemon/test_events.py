"""What happened is remembered in order and within bounds, and those who are slow are told what they missed."""

import asyncio

import pytest

from agent.events import MEMORY_EVENTS, QUEUE_EVENTS, EventKind, EventLog
from tests.daemon.clocks import HandClock


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def log(clock: HandClock) -> EventLog:
    return EventLog(clock)


def publish(log: EventLog, count: int) -> None:
    for number in range(count):
        log.publish(EventKind.CHILD, f"number {number}", number=number)


def test_events_are_numbered_and_carry_the_wall_time(log: EventLog, clock: HandClock) -> None:
    first = log.publish(EventKind.MODE, "Hold: because", after="hold")
    clock.pass_s(1.5)
    second = log.publish(EventKind.MODE, "Idle: parked.", after="idle")
    assert second.seq == first.seq + 1 == log.last
    assert (first.at, second.at) == ("2027-01-15T08:00:00.000+00:00", "2027-01-15T08:00:01.500+00:00")
    assert (first.text, second.text) == ("Hold: because.", "Idle: parked.")
    assert first.data == {"after": "hold"}


def test_what_came_after_an_event_can_be_asked_for(log: EventLog) -> None:
    publish(log, 5)
    third = log.since(0)[1][2]
    lost, events = log.since(third.seq)
    assert lost == 0
    assert [event.data["number"] for event in events] == [3, 4]


def test_the_memory_is_bounded_and_says_what_it_forgot(log: EventLog) -> None:
    publish(log, 3)
    heard = log.last
    publish(log, MEMORY_EVENTS + 7)
    lost, events = log.since(heard)
    assert lost == 7
    assert len(events) == MEMORY_EVENTS
    assert events[0].data["number"] == 7


@pytest.mark.parametrize(("count", "later_s"), [(50, 3.0), (2, 0.001)])
def test_a_restart_gives_larger_numbers_also_to_those_who_heard_the_run_before(
    clock: HandClock, count: int, later_s: float
) -> None:
    before = EventLog(clock)
    publish(before, count)
    clock.pass_s(later_s)
    after = EventLog(clock)
    publish(after, 2)
    lost, events = after.since(before.last)
    assert lost == 0
    assert [event.data["number"] for event in events] == [0, 1]


def test_a_restart_with_the_clock_set_back_hides_nothing(clock: HandClock) -> None:
    before = EventLog(clock)
    publish(before, 50)
    clock.wall -= 86_400.0
    after = EventLog(clock)
    publish(after, 2)
    assert [event.data["number"] for event in after.since(before.last)[1]] == [0, 1]


async def test_a_listener_hears_what_comes_in_order(log: EventLog) -> None:
    publish(log, 1)
    listener = log.follow()
    waiting = asyncio.ensure_future(listener.next())
    await asyncio.sleep(0)
    publish(log, 3)
    async with asyncio.timeout(2):
        heard = [await waiting, await listener.next(), await listener.next()]
    assert [(lost, event.data["number"]) for lost, event in heard] == [(0, 0), (0, 1), (0, 2)]


async def test_a_slow_listener_loses_the_oldest_and_is_told_and_nobody_waits_for_it(log: EventLog) -> None:
    slow, quick = log.follow(), log.follow()
    publish(log, QUEUE_EVENTS + 5)
    lost, event = await slow.next()
    assert (lost, event.data["number"]) == (5, 5)
    lost, event = await slow.next()
    assert (lost, event.data["number"]) == (0, 6)
    log.unfollow(slow)
    publish(log, 1)
    for _ in range(QUEUE_EVENTS - 2):
        _, event = await slow.next()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slow.next(), 0.01)
    assert (await quick.next())[0] == 6


async def test_waiting_that_is_given_up_loses_nothing(log: EventLog) -> None:
    listener = log.follow()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(listener.next(), 0.01)
    publish(log, 1)
    assert (await listener.next())[1].data["number"] == 0
