"""Children live as long as the supervisor wants, and their deaths are handled, not suffered."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.config import StationConfig
from agent.supervisor import CRASHES_TO_GIVE_UP, ChildSpec, Supervisor

Make = Callable[..., StationConfig]
DEADLINE_S = 60.0
"""Nothing here takes two seconds, but each start is a new interpreter, and the machine may be busy."""


async def until(condition: Callable[[], Any], what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the condition is another process's file
            await asyncio.sleep(0.01)
    assert condition(), what


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


class Watched:
    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.down: list[tuple[str, str]] = []
        self.failed: list[tuple[str, str]] = []


@asynccontextmanager
async def running(config: StationConfig, *specs: ChildSpec) -> AsyncIterator[Watched]:
    watched: Watched
    supervisor = Supervisor(
        config,
        specs,
        SystemClock(),
        lambda name, why: watched.down.append((name, why)),
        lambda name, why: watched.failed.append((name, why)),
    )
    watched = Watched(supervisor)
    task = asyncio.create_task(supervisor.run())
    try:
        yield watched
    finally:
        await supervisor.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def child(name: str, log: Path, **more: Any) -> ChildSpec:
    return ChildSpec(name, f"tests.daemon.children:{name}", "test", {"log": str(log)}, **more)


async def test_a_killed_child_is_back_at_once(make_config: Make, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with running(make_config(), child("steady", log)) as watched:
        await until(lambda: len(lines(log)) == 1, "started")
        pid = int(lines(log)[0])
        assert watched.supervisor.children["steady"].pid == pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: len(lines(log)) == 2, "restarted")
        assert watched.down == [("steady", "killed by SIGKILL")]
        assert watched.supervisor.children["steady"].restarts == 1


async def test_a_silent_child_is_killed_and_replaced(make_config: Make, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with running(make_config(), child("steady", log, silence_s=2.0, first_silence_s=2.0)) as watched:
        await until(lambda: len(lines(log)) >= 2, "replaced")
        assert watched.down[0] == ("steady", "hung for 2 s and was killed")


async def test_a_child_that_keeps_dying_is_given_up_and_tried_again_on_request(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.supervisor.BACKOFF_S", (0.0, 0.01))
    log, other = tmp_path / "log", tmp_path / "other"
    async with running(make_config(), child("crashing", log), child("steady", other)) as watched:
        await until(lambda: watched.failed, "given up")
        assert len(lines(log)) == CRASHES_TO_GIVE_UP
        name, why = watched.failed[0]
        assert name == "crashing"
        assert "died 5 times" in why
        assert "SIGSEGV" in why
        assert watched.supervisor.children["steady"].pid == int(lines(other)[0]), "the rest goes on"
        watched.supervisor.retry_failed()
        await until(lambda: len(lines(log)) > CRASHES_TO_GIVE_UP, "tried again")


async def test_a_child_that_is_not_vital_is_tried_for_ever_reported_once_and_forgiven(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.supervisor.BACKOFF_S", (0.0, 0.01))
    monkeypatch.setattr("agent.supervisor.RETRY_S", 0.05)
    monkeypatch.setattr("agent.supervisor.STABLE_S", 3.0)
    log, well = tmp_path / "log", tmp_path / "well"
    spec = ChildSpec(
        "moody", "tests.daemon.children:crashing_until", "test", {"log": str(log), "well": str(well)}, vital=False
    )
    async with running(make_config(), spec) as watched:
        await until(lambda: len(lines(log)) > 2 * CRASHES_TO_GIVE_UP, "still tried")
        assert {name for name, _ in watched.failed} == {"moody"}
        assert len(watched.failed) <= 2, "once; on a busy machine a slow death may look like being well"
        assert watched.supervisor.failed() is None, "the arm can be used"
        well.touch()
        await until(lambda: watched.supervisor.children["moody"].failed is None, "well again")
        assert watched.supervisor.children["moody"].pid


async def test_a_missing_device_is_waited_for_and_never_given_up(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.supervisor.BACKOFF_S", (0.0, 0.01))
    log = tmp_path / "log"
    async with running(make_config(), child("absent", log)) as watched:
        await until(lambda: len(lines(log)) > 2 * CRASHES_TO_GIVE_UP, "still trying")
        assert watched.failed == []


async def test_a_killed_nursery_is_replaced_and_so_are_its_children(make_config: Make, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with running(make_config(), child("steady", log)) as watched:
        await until(lambda: len(lines(log)) == 1, "started")
        first = int(lines(log)[0])
        nursery = watched.supervisor._nurseries["test"]._process
        assert nursery is not None
        nursery.kill()
        await until(lambda: len(lines(log)) == 2, "replaced")
        # The old child was told to end with its nursery.
        await until(lambda: not _alive(first), "the old one ended")


async def test_a_second_nursery_grows_on_the_first_and_survives_its_death(make_config: Make, tmp_path: Path) -> None:
    log, other = tmp_path / "log", tmp_path / "other"
    branch = ChildSpec("other", "tests.daemon.children:steady", "branch", {"log": str(other)})
    async with running(make_config(), child("steady", log), branch) as watched:
        await until(lambda: lines(log) and lines(other), "both started")
        trunk, grown = watched.supervisor._nurseries["test"].pid, watched.supervisor._nurseries["branch"].pid
        assert trunk
        assert grown
        os.kill(trunk, signal.SIGKILL)
        await until(lambda: len(lines(log)) == 2, "the trunk's child was replaced")
        assert len(lines(other)) == 1, "the branch's child was left alone"
        os.kill(grown, signal.SIGKILL)
        await until(lambda: len(lines(other)) == 2, "the branch grew on the new trunk")


async def test_a_nursery_that_cannot_import_is_reported(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.supervisor.BACKOFF_S", (0.0, 0.01))
    broken = ChildSpec("broken", "tests.daemon.no_such_module:main", "imports")
    async with running(make_config(), broken) as watched:
        await until(lambda: watched.failed, "reported")
        assert watched.failed == [("imports", "the imports cannot be started; the log shows why")]
        assert watched.supervisor.is_vital("imports")


async def test_surfaces_that_cannot_be_imported_keep_nothing_else_away(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.supervisor.BACKOFF_S", (0.0, 0.01))
    monkeypatch.setattr("agent.supervisor.NURSERY_READY_S", 0.2)
    log, later = tmp_path / "log", tmp_path / "later"
    broken = ChildSpec("page", "tests.daemon.no_such_module:main", "surfaces", vital=False)
    behind = ChildSpec("behind", "tests.daemon.children:steady", "behind", {"log": str(later)})
    async with running(make_config(), child("steady", log), broken, behind) as watched:
        await until(lambda: watched.failed and lines(log) and lines(later), "the others run")
        assert watched.supervisor.children["page"].failed == "the surfaces cannot be started; the log shows why"
        assert not watched.supervisor.is_vital("surfaces")
        assert watched.supervisor.failed() is None


async def test_closing_leaves_no_process_behind(make_config: Make, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with running(make_config(), child("steady", log)):
        await until(lambda: len(lines(log)) == 1, "started")
        pid = int(lines(log)[0])
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
