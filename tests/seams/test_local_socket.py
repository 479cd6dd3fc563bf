"""The daemon's Unix socket: answers, progress, errors, and nobody else's hands on it."""

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from agent.api.local import MAX_LINE_BYTES, OWNER_AND_GROUP, Client, Progress, serve
from agent.errors import AgentError, BadInput, NotRunning, Refused


async def handle(verb: str, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    match verb:
        case "echo":
            return args
        case "slow":
            for step in range(3):
                await progress({"step": step})
            return {"done": True}
        case "odd":
            return {"a": object()}
        case "refuse":
            raise Refused("Not now.", "Later.")
        case _:
            raise RuntimeError("a bug")


async def call(path: Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return await asyncio.to_thread(Client(path).call, *args, **kwargs)


async def test_a_verb_is_answered_and_progress_arrives_in_order(short_dir: Path) -> None:
    steps: list[dict[str, Any]] = []
    async with serve(short_dir / "run" / "s", handle):
        assert await call(short_dir / "run" / "s", "echo", {"a": 1}) == {"a": 1}
        assert await call(short_dir / "run" / "s", "slow", on_progress=steps.append) == {"done": True}
    assert steps == [{"step": 0}, {"step": 1}, {"step": 2}]


async def test_an_error_keeps_its_kind_sentence_and_hint(short_dir: Path) -> None:
    async with serve(short_dir / "s", handle):
        with pytest.raises(Refused) as refusal:
            await call(short_dir / "s", "refuse")
    assert (refusal.value.message, refusal.value.hint) == ("Not now.", "Later.")


async def test_a_bug_behind_one_verb_does_not_end_the_daemon(short_dir: Path) -> None:
    async with serve(short_dir / "s", handle):
        with pytest.raises(AgentError, match="a bug"):
            await call(short_dir / "s", "crash")
        with pytest.raises(AgentError, match="not JSON serializable"):
            await call(short_dir / "s", "odd")
        assert await call(short_dir / "s", "echo", {}) == {}


@pytest.mark.parametrize(
    "line", [b"not json", b"[]", b'{"verb": 3}', b'{"args": {}}', b"\xff\xfe", b"1" * (MAX_LINE_BYTES + 9)]
)
async def test_a_malformed_line_is_answered_with_a_sentence(short_dir: Path, line: bytes) -> None:
    async with serve(short_dir / "s", handle):
        reader, writer = await asyncio.open_unix_connection(short_dir / "s", limit=MAX_LINE_BYTES)
        writer.write(line + b"\n")
        answer = json.loads(await reader.readline())
        writer.close()
    assert answer["ok"] is False
    assert answer["code"] == BadInput.code


async def test_only_the_owner_may_open_the_socket(short_dir: Path) -> None:
    async with serve(short_dir / "run" / "s", handle):
        assert stat.S_IMODE((short_dir / "run" / "s").stat().st_mode) == 0o600
        assert stat.S_IMODE((short_dir / "run").stat().st_mode) == 0o700


async def test_a_group_may_open_it_where_that_is_wanted(short_dir: Path) -> None:
    async with serve(short_dir / "s", handle, OWNER_AND_GROUP):
        assert stat.S_IMODE((short_dir / "s").stat().st_mode) == 0o660


def test_an_agent_that_stops_hangs_up_on_those_who_follow_it_and_says_nothing(short_dir: Path) -> None:
    complaints: list[dict[str, Any]] = []

    async def follow() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
        begun = asyncio.Event()

        async def for_ever(verb: str, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
            await progress({"last": 0})
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        async with serve(short_dir / "s", for_ever):
            told = asyncio.create_task(call(short_dir / "s", "events", timeout_s=60.0))
            await begun.wait()
        with pytest.raises(NotRunning, match="hung up"):
            await told

    asyncio.run(follow())
    assert complaints == []


def test_no_agent_is_said_in_a_sentence(short_dir: Path) -> None:
    with pytest.raises(NotRunning, match="No agent answers"):
        Client(short_dir / "s").call("status")


async def test_an_agent_that_hangs_is_said_in_a_sentence(short_dir: Path) -> None:
    server = await asyncio.start_unix_server(lambda reader, writer: None, short_dir / "s")
    with pytest.raises(NotRunning, match="did not answer"):
        await call(short_dir / "s", "status", timeout_s=0.1)
    server.close()
