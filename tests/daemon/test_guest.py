"""Federation makes room for whoever wants the arm, before the arm is asked, and whatever state it is in itself."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from agent.clock import Clock, SystemClock
from agent.config import StationConfig
from agent.errors import AgentError, BadInput, NoControl, Refused
from agent.events import EventKind
from agent.fl.desk import Desk
from agent.guest import Answer
from agent.messages import Drive
from agent.modes import Mode
from agent.requests import Progress
from agent.station import Station
from tests.daemon.fake_arm import FakeArm


class FakeFederation:
    """Notes what the arm was doing when it had to make room."""

    def __init__(self, config: StationConfig, clock: Clock, desk: Desk) -> None:
        self.desk = desk
        self.arm: FakeArm | None = None
        self.yielded: list[tuple[str, list[Drive], str | None]] = []
        self.judgements: list[tuple[str, bool]] = []
        self.runs = 0
        self.broken = False

    async def run(self) -> None:
        self.runs += 1
        if self.broken:
            raise OSError("federation's folder is gone")
        await asyncio.Event().wait()

    def yield_now(self, cause: str) -> None:
        self.yielded.append((cause, list(self.arm.drives) if self.arm else [], self.desk.wanted()))
        self.desk.training(None)
        if self.broken:
            raise ZeroDivisionError

    def judged(self, policy: str, success: bool) -> None:
        self.judgements.append((policy, success))

    def status(self) -> dict[str, Any] | None:
        if self.broken:
            raise ZeroDivisionError
        return {"enrolled": False}

    def verbs(self) -> dict[str, Answer]:
        async def pause(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
            if args:
                raise BadInput("fl.pause takes nothing.")
            await progress({"pausing": True})
            return {"paused": True}

        return {"fl.pause": pause, "fl.enroll": pause}


async def nowhere(told: dict[str, Any]) -> None:
    """Progress that nobody reads."""


@pytest.fixture
def arm(make_config: Any) -> Iterator[FakeArm]:
    with FakeArm(make_config().paths.arm_ctl) as arm:
        yield arm


@pytest.fixture
async def station(make_config: Any, arm: FakeArm) -> AsyncIterator[Station]:
    station = Station(make_config(), SystemClock(), FakeFederation)
    await station.handle("release", {}, nowhere)
    federation(station).arm = arm
    federation(station).yielded.clear()
    arm.drives.clear()
    yield station
    await station.background.settle()


def federation(station: Station) -> FakeFederation:
    guest = station.guest._federated
    assert isinstance(guest, FakeFederation)
    return guest


@pytest.mark.parametrize(
    ("verb", "drive"),
    [("teleop.start", Drive.ALIGN), ("hold", Drive.HOLD), ("park", Drive.PARK), ("release", Drive.LIMP)],
)
async def test_room_is_made_before_the_arm_is_asked(station: Station, arm: FakeArm, verb: str, drive: Drive) -> None:
    station.training("round 3")
    assert station.machine.mode is Mode.TRAINING
    await station.handle(verb, {}, nowhere)
    assert federation(station).yielded == [(f"{verb} was asked for", [], "somebody asked for the arm")]
    assert arm.drives == [drive]


async def test_a_request_that_is_refused_for_want_of_control_disturbs_no_training(station: Station) -> None:
    station.training("round 3")
    with pytest.raises(NoControl):
        await station.handle("teleop.start", {"via": "http"}, nowhere)
    assert federation(station).yielded == []
    assert station.machine.mode is Mode.TRAINING


async def test_the_arm_is_reached_when_federation_fails(station: Station, arm: FakeArm) -> None:
    federation(station).broken = True
    answer = await station.handle("teleop.start", {}, nowhere)
    assert answer["mode"] == "teleop"
    assert arm.drives == [Drive.ALIGN]
    assert station.status()["federation"] == {"problem": "ZeroDivisionError()"}


async def test_a_federation_that_fails_is_tried_again(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.guest.AGAIN_S", 0.01)
    federation(station).broken = True
    running = asyncio.create_task(station.guest.run())
    async with asyncio.timeout(5):
        while federation(station).runs < 3:  # noqa: ASYNC110 - it counts, and wakes nobody
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_training_takes_an_idle_station_only_and_gives_it_back(station: Station) -> None:
    assert station.wanted() is None
    station.training("round 1")
    station.training("round 2")
    assert (station.machine.mode, station.machine.reason) == (Mode.TRAINING, "round 2")
    assert station.wanted() is None
    station.training(None)
    assert station.machine.mode is Mode.IDLE
    await station.handle("hold", {}, nowhere)
    assert station.wanted() == "the station is in mode hold; `so-agent park` frees it"
    station.training("round 3")
    assert station.machine.mode is Mode.HOLD
    station.training(None)
    assert station.machine.mode is Mode.HOLD


async def test_a_task_that_waits_for_its_policy_wants_the_arm(
    station: Station, config: StationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config.paths.policies / "reach").mkdir(parents=True)
    told: list[str | None] = []

    async def loading(*_: Any) -> None:
        told.append(station.wanted())
        assert station.status()["loading"] == "reach"
        raise Refused("The policy is broken.")

    monkeypatch.setattr("agent.motion.load", loading)
    with pytest.raises(Refused):
        await station.handle("task.start", {"task": "x", "policy": "reach"}, nowhere)
    assert told == ["a task is under way"]
    assert station.wanted() is None
    assert station.status()["loading"] is None
    texts = [event.text for event in station.events.since(0)[1] if event.kind is EventKind.TASK]
    assert texts == ["Task 'x' waits for the policy reach.", "Task 'x' did not begin: The policy is broken."]


@pytest.fixture
def config(station: Station) -> StationConfig:
    return station.config


async def test_federation_tells_and_answers_through_the_station(station: Station) -> None:
    station.tell("Round 1 begins", {"round": 1})
    event = station.events.since(0)[1][-1]
    assert (event.kind, event.text, event.data) == (EventKind.FEDERATION, "Round 1 begins.", {"round": 1})
    told: list[dict[str, Any]] = []

    async def progress(step: dict[str, Any]) -> None:
        told.append(step)

    assert await station.handle("fl.pause", {"via": "http"}, progress) == {"paused": True}
    with pytest.raises(Refused, match="for the station itself"):
        await station.handle("fl.enroll", {"via": "http"}, progress)
    assert told == [{"pausing": True}]
    with pytest.raises(BadInput):
        await station.handle("fl.pause", {"x": 1}, progress)
    assert station.status()["federation"] == {"enrolled": False}


async def test_without_federation_its_verbs_are_unknown(make_config: Any) -> None:
    station = Station(make_config(), SystemClock())
    assert station.status()["federation"] is None
    with pytest.raises(AgentError, match="Unknown verb"):
        await station.handle("fl.pause", {}, nowhere)
