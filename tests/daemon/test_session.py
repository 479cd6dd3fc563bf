"""A recording session runs its plan, and every way of ending it keeps what should be kept."""

import asyncio
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.errors import Refused
from agent.events import EventKind, EventLog
from agent.messages import (
    DiscardEpisode,
    EpisodeResult,
    FinishEpisode,
    RecorderReport,
    RecorderState,
    StartEpisode,
)
from agent.session import Phase, Plan, Session


class Recorder:
    """Answers like the recorder process; episodes end when `end` is called or when they are told to."""

    def __init__(self) -> None:
        self.session: Session
        self.events = EventLog(SystemClock())
        self.asked: list[Any] = []
        self.now = 0
        self.committed = 0
        self.refuse_next: Refused | None = None
        self.started = asyncio.Event()

    def report(self, state: RecorderState, last: EpisodeResult | None = None) -> RecorderReport:
        self.now += 1
        return RecorderReport(self.now, 1, state, task="t", frames=3, seconds=0.1, last=last)

    async def ask(self, command: Any) -> RecorderReport:
        self.asked.append(command)
        match command:
            case StartEpisode():
                if self.refuse_next:
                    raise self.refuse_next
                self.started.set()
                return self.report(RecorderState.RECORDING)
            case FinishEpisode():
                await self.end("committed")
            case DiscardEpisode():
                await self.end("discarded")
        return self.report(RecorderState.READY)

    async def end(self, outcome: str) -> None:
        self.started.clear()
        episode = None
        if outcome == "committed":
            episode, self.committed = self.committed, self.committed + 1
        await self.session.heard(self.report(RecorderState.READY, EpisodeResult(episode, "t", 3, outcome)))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


async def start(recorder: Recorder, **plan: Any) -> Session:
    session = Session(Plan(**({"task": "t", "reset_s": 0.0} | plan)), recorder.ask, recorder.events)
    recorder.session = session
    await session.start()
    return session


async def test_a_plan_of_three_episodes_records_three(recorder: Recorder) -> None:
    session = await start(recorder, episodes=3, episode_s=5.0)
    for _ in range(3):
        async with asyncio.timeout(2):
            await recorder.started.wait()
        await recorder.end("committed")
    await session.wait()
    assert [result.episode for result in session.done] == [0, 1, 2]
    assert session.summary()["problem"] == ""
    told = recorder.events.since(0)[1]
    assert [event.kind for event in told] == [EventKind.RECORDING, *[EventKind.EPISODE] * 3, EventKind.RECORDING]
    assert told[1].text == "Episode 0 of 't' was committed."
    assert told[-1].data["began"] is False
    assert [command.max_s for command in recorder.asked] == [5.0, 5.0, 5.0]


async def test_stop_commits_the_running_episode_and_ends(recorder: Recorder) -> None:
    session = await start(recorder, episodes=5, episode_s=5.0)
    await session.stop(success=True)
    assert recorder.asked[-1] == FinishEpisode(True)
    assert [result.outcome for result in session.done] == ["committed"]
    assert session.over


async def test_discard_drops_the_running_episode_and_ends(recorder: Recorder) -> None:
    session = await start(recorder, episodes=5, episode_s=5.0)
    await session.discard("clumsy")
    assert [result.outcome for result in session.done] == ["discarded"]
    assert session.over


async def test_again_drops_the_episode_without_counting_it(recorder: Recorder) -> None:
    session = await start(recorder, episodes=1, episode_s=5.0)
    await session.again()
    async with asyncio.timeout(2):
        await recorder.started.wait()
    await recorder.end("committed")
    await session.wait()
    assert [result.outcome for result in session.done] == ["committed"]


async def test_stop_between_two_episodes_ends_the_session_at_once(recorder: Recorder) -> None:
    session = await start(recorder, episodes=2, episode_s=5.0, reset_s=3600.0)
    await recorder.end("committed")
    async with asyncio.timeout(2):
        while session.phase is not Phase.RESET:  # noqa: ASYNC110 - one turn of the loop gets it there
            await asyncio.sleep(0)
        await session.stop()
    assert len(session.done) == 1


async def test_a_refusal_between_episodes_ends_the_session_and_says_why(recorder: Recorder) -> None:
    session = await start(recorder, episodes=2, episode_s=5.0)
    recorder.refuse_next = Refused("The disk is full.")
    await recorder.end("committed")
    await session.wait()
    assert session.problem == "The disk is full."
    assert len(session.done) == 1


async def test_a_recorder_that_died_ends_the_episode_as_salvaged(recorder: Recorder) -> None:
    session = await start(recorder)
    await session.heard(recorder.report(RecorderState.STARTING))
    assert not session.over
    await session.heard(recorder.report(RecorderState.READY))
    await session.wait()
    assert session.done[0].outcome == "salvaged"


async def test_status_tells_how_far_the_session_is(recorder: Recorder) -> None:
    session = await start(recorder, episodes=2, episode_s=5.0)
    status = session.status()
    assert status["episode"] == 1
    assert status["episodes"] == 2
    assert status["frames"] == 3
    await session.stop()
