"""The small parts: the memory of commands on the disk, the clock, inbox and outbox, and the waits between tries."""

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from aiomqtt import Message
from pydantic import ValidationError

from agent.api.mqtt.backoff import FIRST_S, LONGEST_S, STABLE_S, Backoff
from agent.api.mqtt.inbox import INBOX_MESSAGES, Inbox
from agent.api.mqtt.messages import Ack
from agent.api.mqtt.orders import ACKS_MAX, Answer, Outbox
from agent.api.mqtt.places import Places
from agent.api.mqtt.seen import Seen
from agent.api.mqtt.timekeeping import Synchrony, Timekeeping, from_kernel, from_timedatectl, from_timesyncd
from agent.api.mqtt.topics import Topics
from agent.config import Mqtt
from tests.mqtt.clocks import NOW_S, OwnClock


def test_a_line_that_a_crash_cut_short_costs_nothing_else(tmp_path: Path) -> None:
    seen = Seen(tmp_path / "seen")
    for number in range(3):
        seen.note(f"command-{number}", NOW_S + 5, NOW_S)
        seen.keep(f"command-{number}")
    data = (tmp_path / "seen").read_bytes()
    for length in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:length])
        cut = Seen(tmp_path / "cut")
        lines = data[:length].count(b"\n")
        assert len(cut) >= lines - 1  # the first line is the floor
        cut.note("command-9", NOW_S + 5, NOW_S)
        cut.keep("command-9")
        assert "command-9" in Seen(tmp_path / "cut")


def test_garbage_in_the_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "seen").write_bytes(
        b'\x00\x00\n{"id": "command-1", "until": 5.5}\n[]\n{"id": 5}\n{"floor": NaN}\n{"until": 1.0}\n' + b"[" * 5000
    )
    seen = Seen(tmp_path / "seen")
    assert "command-1" in seen
    assert (len(seen), seen.floor) == (1, 0.0)


def test_the_file_and_the_memory_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.api.mqtt.seen.MAX_IDS", 64)
    monkeypatch.setattr("agent.api.mqtt.seen.REWRITE_LINES", 128)
    seen, most = Seen(tmp_path / "seen"), 0
    for number in range(1000):
        seen.note(f"command-{number}", NOW_S + number, NOW_S + number)
        seen.keep(f"command-{number}")
        most = max(most, len((tmp_path / "seen").read_bytes().splitlines()))
    assert len(seen) <= 64
    assert most <= 128
    again = Seen(tmp_path / "seen")
    forgotten = [number for number in range(1000) if f"command-{number}" not in again]
    assert len(forgotten) > 800
    assert again.floor == NOW_S + max(forgotten)


FULL_DISK = """
import resource, sys
from pathlib import Path
from agent.api.mqtt.places import Places
from agent.api.mqtt.seen import Seen
path = Path(sys.argv[1])
seen = Seen(path)
seen.note("command-0", 1e9, 0.0)
seen.keep("command-0")
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))  # the disk is full in half a line
seen.note("command-1", 1e9, 0.0)
try:
    seen.keep("command-1")
except OSError as error:
    print("refused", error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
seen.note("command-2", 1e9, 0.0)
seen.keep("command-2")
"""


def test_a_full_disk_refuses_one_command_and_spoils_no_other(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "seen")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "refused" in result.stdout
    again = Seen(tmp_path / "seen")
    assert all(f"command-{number}" in again for number in range(3))


def test_the_kernel_is_asked_about_the_clock() -> None:
    answer = from_kernel()
    assert answer is None or answer.reason


def test_timedatectl_is_asked_where_the_kernel_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "timedatectl"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert from_timedatectl() is None
    for said, good in (("yes", True), ("no", False)):
        tool.write_text(f"#!/bin/sh\necho {said}\n")
        tool.chmod(0o700)
        keeping = Timekeeping((lambda: None, from_timedatectl))
        keeping.look()
        assert keeping.synchrony.good is good
    tool.write_text("#!/bin/sh\nexit 1\n")
    assert from_timedatectl() is None


def test_the_stamp_of_timesyncd_is_believed_for_a_while(tmp_path: Path) -> None:
    stamp = tmp_path / "synchronized"
    assert from_timesyncd(stamp) is None
    stamp.touch()
    answer = from_timesyncd(stamp)
    assert answer
    assert answer.good
    old_s = stamp.stat().st_mtime - 4 * 3600
    os.utime(stamp, (old_s, old_s))
    answer = from_timesyncd(stamp)
    assert answer
    assert not answer.good


def test_every_way_to_learn_about_the_clock_is_tried() -> None:
    """A service may not ask the kernel, and a small board may have no timedatectl."""
    assert Timekeeping()._sources == (from_kernel, from_timedatectl, from_timesyncd)


def test_a_clock_nobody_can_judge_is_not_believed() -> None:
    keeping = Timekeeping((lambda: None,))
    assert not keeping.synchrony.good
    keeping.look()
    assert "cannot be told" in keeping.synchrony.reason
    trusted = Timekeeping((lambda: Synchrony(False, "no"),), trusted=True)
    trusted.look()
    assert trusted.synchrony.good


def _message(verb: str, number: int = 0) -> Message:
    return Message(f"so/v1/test/cmd/{verb}", str(number).encode(), 1, False, number, None)


async def test_a_stop_overtakes_a_flood_and_is_never_discarded() -> None:
    inbox = Inbox()
    for number in range(INBOX_MESSAGES):
        inbox.put_nowait(_message("status", number))
    with pytest.raises(asyncio.QueueFull):
        inbox.put_nowait(_message("status"))
    inbox.put_nowait(_message("estop"))
    assert (await inbox.get()).topic.value.endswith("estop")
    assert [int((await inbox.get()).payload) for _ in range(INBOX_MESSAGES)] == list(range(INBOX_MESSAGES))
    assert inbox.empty()


async def test_places_are_few_and_fill_again_with_time() -> None:
    clock = OwnClock()
    places, go = Places(clock, most=3, a_second=2.0), asyncio.Event()

    async def work() -> None:
        await go.wait()

    for _ in range(3):
        assert not places.full
        places.begin(work(), "work")
    assert places.full  # three are under way
    go.set()
    await asyncio.sleep(0.01)
    assert not places.full
    places.begin(work(), "work")
    await asyncio.sleep(0.01)
    assert places.full  # four began within a moment
    clock.advance(0.5)
    assert not places.full
    clock.advance(3600)
    for _ in range(4):
        assert not places.full
        places.begin(work(), "work")
        await asyncio.sleep(0.01)
    assert places.full
    await places.close()


def _answer(number: int, status: str = "refused") -> Answer:
    return Answer("so/v1/test/ack", None, Ack(id=f"command-{number}", verb="hold", status=status, at=""))  # type: ignore[arg-type]


async def test_answers_wait_for_the_broker_in_bounds_and_refusals_go_first() -> None:
    outbox = Outbox()
    outbox.put(_answer(0, "done"))
    for number in range(1, ACKS_MAX + 100):
        outbox.put(_answer(number))
    assert (len(outbox), outbox.dropped) == (ACKS_MAX, 100)
    (first,) = await outbox.some(1)
    assert first.ack.id == "command-0"
    assert await outbox.some(1) == [first]  # it was not said to be done: the connection broke
    outbox.done(first)
    outbox.done(first)
    assert [answer.ack.id for answer in await outbox.some(2)] == ["command-101", "command-102"]


def test_waits_grow_to_half_a_minute_and_differ() -> None:
    waits = [[Backoff(random.Random(station)).next_s(0.0)] for station in range(100)]
    assert len({round(wait, 3) for (wait,) in waits}) > 90
    backoff = Backoff(random.Random(1))
    grown = [backoff.next_s(0.0) for _ in range(200)]
    assert max(grown[:1]) <= FIRST_S
    assert LONGEST_S / 2 < max(grown) <= LONGEST_S
    assert min(grown) >= 0.1
    assert backoff.next_s(STABLE_S) <= FIRST_S


def test_a_station_answers_on_its_own_topics_alone() -> None:
    topics = Topics("kitchen")
    assert topics.may_answer_on("so/v1/kitchen/ack/desk-7")
    for topic in (
        "so/v1/kitchen/ack",
        "so/v1/kitchen/state",
        "so/v1/kitchen/cmd/hold",
        "so/v1/other/cmd/hold",
        "so/v1/kitchen/ack/+",
        "so/v1/kitchen/ack/#",
        "so/v1/kitchen/ack/" + "x" * 300,
        "so/v1/kitchen/ack/\n",
        "homeassistant/device/x/config",
        "$SYS/x",
        "",
    ):
        assert not topics.may_answer_on(topic), topic


def test_a_broker_on_another_machine_is_refused_without_tls() -> None:
    with pytest.raises(ValidationError, match=r"mqtt\.tls must be given"):
        Mqtt(host="broker.example")
    assert Mqtt(host="localhost").tls is None
