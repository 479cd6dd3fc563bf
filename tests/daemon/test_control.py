"""Who may move the arm from a distance, and what happens when they fall silent: a real station, a fake arm."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from agent.api.local import AsyncClient, serve
from agent.api.schemas import VERBS, Access
from agent.clock import SystemClock
from agent.config import StationConfig
from agent.errors import AgentError, DeviceFault, NoControl, Refused
from agent.messages import Drive, Problem
from agent.modes import Mode
from agent.station import Station
from tests.daemon.fake_arm import FakeArm

TTL_S = 0.4
PAGE_GONE_TO_HOLD_S = 0.5
"""From the last renewal. What people are promised."""


@pytest.fixture
def config(make_config: Any) -> StationConfig:
    config: StationConfig = make_config()
    return config


@pytest.fixture
def arm(config: StationConfig) -> Iterator[FakeArm]:
    with FakeArm(config.paths.arm_ctl) as arm:
        yield arm


class Bench:
    """A station that has heard from its arm; `page` is a remote surface, `here` this machine's command line."""

    def __init__(self, station: Station, arm: FakeArm) -> None:
        path = station.paths.agent_socket
        self.station = station
        self.arm = arm
        self.here = AsyncClient(path)
        self.page = AsyncClient(path, via="http")

    async def take(self, owner: str = "Ada", ttl_s: float = 5.0, **more: Any) -> str:
        answer = await self.page.call("lease.take", {"owner": owner, "ttl_s": ttl_s, **more})
        token: str = answer["token"]
        return token

    async def mode(self, mode: Mode) -> None:
        async with asyncio.timeout(5):
            while self.station.machine.mode is not mode:  # noqa: ASYNC110 - two turns of the loop
                await asyncio.sleep(0.001)


@pytest.fixture
async def bench(config: StationConfig, arm: FakeArm) -> AsyncIterator[Bench]:
    station = Station(config, SystemClock())
    watch = asyncio.create_task(station.leases.watch())
    async with serve(config.paths.agent_socket, station.handle):
        bench = Bench(station, arm)
        await bench.here.call("release")
        assert station.machine.mode is Mode.IDLE
        yield bench
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    await station.background.settle()


NEED_A_LEASE = [
    ("teleop.start", {}),
    ("task.start", {"task": "x"}),
    ("park", {}),
    ("release", {}),
    ("reset", {}),
    ("record.start", {"task": "x"}),
    ("record.discard", {}),
    ("record.rerecord", {}),
]


@pytest.mark.parametrize(("verb", "args"), NEED_A_LEASE)
async def test_nothing_moves_from_a_distance_without_the_lease(bench: Bench, verb: str, args: dict[str, Any]) -> None:
    asked = len(bench.arm.drives)
    over = await bench.take()
    await bench.page.call("lease.release", {"token": over})
    for lease in ({}, {"lease": None}, {"lease": "guess"}, {"lease": over}):
        with pytest.raises(NoControl):
            await bench.page.call(verb, args | lease)
    assert len(bench.arm.drives) == asked


def test_surfaces_ask_for_the_lease_exactly_where_the_daemon_does() -> None:
    assert {verb for verb, about in VERBS.items() if about.access is Access.MOVE} == {verb for verb, _ in NEED_A_LEASE}


@pytest.mark.parametrize("verb", [verb for verb, about in VERBS.items() if about.access is not Access.MOVE])
async def test_what_needs_no_lease_is_never_refused_for_one(bench: Bench, verb: str) -> None:
    args = {"episode": 0} if verb.startswith("episodes.") and verb != "episodes.list" else {}
    refused: AgentError | None = None
    try:
        await bench.page.call(verb, args)
    except AgentError as error:  # what is to be stopped may not be there
        refused = error
    assert not isinstance(refused, NoControl)


@pytest.mark.parametrize("via", [None, "", "web"])
async def test_no_request_can_say_itself_that_it_comes_from_here(bench: Bench, via: str | None) -> None:
    """What a surface adds stands above what came with the request."""
    with pytest.raises(AgentError) as refused:
        await bench.page.call("teleop.start", {"via": via})
    assert isinstance(refused.value, NoControl)
    assert bench.arm.drive is Drive.LIMP


async def test_a_token_without_a_surface_is_held_to_its_lease_as_well(bench: Bench) -> None:
    with pytest.raises(NoControl):
        await bench.here.call("teleop.start", {"lease": "guess"})


async def test_shutdown_and_the_reset_of_an_estop_are_for_the_station_itself(bench: Bench) -> None:
    token = await bench.take()
    with pytest.raises(Refused, match="for the station itself"):
        await bench.page.call("shutdown", {"lease": token})
    assert not bench.station.stop_requested.is_set()
    await bench.page.call("estop")
    with pytest.raises(Refused, match="at the station"):
        await bench.page.call("reset", {"lease": token})
    assert bench.arm.drive is Drive.ESTOP
    await bench.here.call("reset")
    assert bench.arm.drive is Drive.HOLD


async def test_everybody_may_stop(bench: Bench) -> None:
    token = await bench.take()
    await bench.page.call("teleop.start", {"lease": token})
    assert (await bench.page.call("hold"))["mode"] == "hold"
    await bench.page.call("teleop.start", {"lease": token})
    assert (await bench.page.call("teleop.stop"))["mode"] == "hold"
    await bench.page.call("teleop.start", {"lease": token})
    assert (await bench.page.call("estop", {"cause": "a hand"}))["mode"] == "estop"


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.ESTOP])
async def test_an_emergency_stop_is_carried_out_and_read_back_in_every_mode(bench: Bench, mode: Mode) -> None:
    bench.station.machine.mode = mode
    answer = await bench.page.call("estop", {"cause": "a hand"})
    assert answer["verified"] is True
    assert answer["mode"] == ("stopping" if mode is Mode.STOPPING else "estop")  # an agent that ends leaves the latch
    assert "a hand" in answer["reason"]
    for verb in ("teleop.start", "park"):
        with pytest.raises(Refused):
            await bench.here.call(verb)
    assert bench.arm.drive is Drive.ESTOP


async def test_the_arm_holds_in_time_when_the_page_goes_away(bench: Bench) -> None:
    token = await bench.take(ttl_s=TTL_S)
    answer = await bench.page.call("teleop.start", {"lease": token})
    assert answer["mode"] == "teleop"
    for _ in range(10):
        await asyncio.sleep(0.1)
        before_ns = time.monotonic_ns()
        answer = await bench.page.call("lease.renew", {"token": token})
    assert answer["mode"] == "teleop"
    assert bench.station.status()["lease"]["moves"] is True
    assert await asyncio.to_thread(bench.arm.held.wait, 5.0)
    took_s = (bench.arm.held_at_ns - before_ns) / 1e9
    assert TTL_S <= took_s <= PAGE_GONE_TO_HOLD_S
    await bench.mode(Mode.HOLD)
    assert "Ada was not heard" in bench.station.machine.reason
    assert bench.station.status()["lease"] is None


@pytest.mark.parametrize("end", ["release", "take over"])
async def test_the_arm_holds_when_control_is_given_back_or_taken(bench: Bench, end: str) -> None:
    token = await bench.take()
    await bench.page.call("teleop.start", {"lease": token})
    if end == "release":
        await bench.page.call("lease.release", {"token": token})
    else:
        with pytest.raises(NoControl, match="Ada has control"):
            await bench.take("Bob")
        await bench.take("Bob", take_over=True)
    await bench.mode(Mode.HOLD)
    assert bench.arm.drive is Drive.HOLD


async def test_motion_that_began_here_does_not_end_with_a_lease(bench: Bench) -> None:
    await bench.here.call("teleop.start")
    token = await bench.take()
    assert (await bench.page.call("teleop.start", {"lease": token}))["mode"] == "teleop"
    await bench.page.call("lease.release", {"token": token})
    await asyncio.sleep(0.05)
    assert bench.arm.drive is Drive.FOLLOW


@pytest.mark.parametrize("verb", ["teleop.start", "hold", "park", "release"])
async def test_the_operator_at_the_station_takes_the_arm_from_whoever_has_control(bench: Bench, verb: str) -> None:
    token = await bench.take()
    await bench.page.call("teleop.start", {"lease": token})
    await bench.here.call(verb)
    with pytest.raises(NoControl, match="operator at the station"):
        await bench.page.call("lease.renew", {"token": token})
    await asyncio.sleep(0.05)
    expected = {"teleop.start": Drive.FOLLOW, "hold": Drive.HOLD, "park": Drive.PARK, "release": Drive.LIMP}
    assert bench.arm.drive is expected[verb]


async def test_a_request_of_the_operator_that_fails_leaves_no_motion_without_an_owner(bench: Bench) -> None:
    token = await bench.take()
    await bench.page.call("teleop.start", {"lease": token})
    bench.arm.refuse = Problem("device-fault", "No.")
    with pytest.raises(DeviceFault):
        await bench.here.call("release")
    await bench.mode(Mode.HOLD)


async def test_motion_that_begins_too_late_is_held_at_once(bench: Bench) -> None:
    """The lease ends while the arm is being asked."""
    token = await bench.take()
    async with bench.station.motion.alone:
        waiting = asyncio.ensure_future(bench.page.call("teleop.start", {"lease": token}))
        await asyncio.sleep(0.05)
        await bench.page.call("lease.release", {"token": token})
    with pytest.raises(NoControl):
        await waiting
    assert Drive.ALIGN not in bench.arm.drives

    token = await bench.take()
    asking = bench.station.links.ask_arm

    async def slow(*args: Any, **more: Any) -> Any:
        bench.station.links.ask_arm = asking  # type: ignore[method-assign]
        bench.station.leases.release(token)
        return await asking(*args, **more)

    bench.station.links.ask_arm = slow  # type: ignore[method-assign]
    with contextlib.suppress(AgentError):
        await bench.page.call("teleop.start", {"lease": token})
    await bench.mode(Mode.HOLD)
    assert bench.arm.drives[-2:] == [Drive.ALIGN, Drive.HOLD]


async def test_hold_does_not_wait_for_what_is_under_way(bench: Bench) -> None:
    await bench.here.call("teleop.start")
    async with bench.station.motion.alone:
        waiting = asyncio.ensure_future(bench.here.call("hold"))
        assert await asyncio.to_thread(bench.arm.held.wait, 2.0)
        assert not waiting.done()
    assert (await waiting)["mode"] == "hold"


async def test_events_tell_who_had_control_and_never_the_token(bench: Bench) -> None:
    token = await bench.take()
    await bench.page.call("lease.release", {"token": token})
    events = (await bench.here.call("events"))["events"]
    told = [event["text"] for event in events if event["kind"] == "lease"]
    assert told == ["Ada has control.", "Ada has no control any more: Ada gave it back."]
    assert token not in str(events)
