"""A process that has the imports done becomes the trainer that another process was started for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.fl.brief import VARIABLE as BRIEF
from agent.fl.room import Room
from agent.fl.runner import VARIABLE as RULES
from agent.fl.runner import Rules
from agent.fl.supernode import Folders, SuperNode
from tests.fl.bench import until

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def warm(short_dir: Path) -> Iterator[Path]:
    """The socket of one that imports nothing large."""
    path = short_dir / "warm"
    code = f"import sys, agent.fl.warm as warm; warm.MODULES = ('json',); sys.argv[1:] = [{str(path)!r}]; warm.main()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    yield path
    process.kill()
    process.wait()


def handed_over(path: Path, folder: Path, stop: str = "False") -> "subprocess.CompletedProcess[str]":
    rules = folder / "rules.json"
    rules.write_bytes(msgspec.json.encode(Rules(str(folder / "trainer.json"), ())))
    code = (
        "import sys; sys.argv = ['flwr-clientapp', '--help']\n"
        "from agent.fl import warm\n"
        f"print('handed over:', warm.hand_over({str(path)!r}, lambda: {stop}), flush=True)\n"
    )
    environment = {**os.environ, RULES: str(rules), BRIEF: ""}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110
    )


@pytest.mark.slow
def test_what_is_forked_is_the_trainer_with_the_arguments_and_the_output_of_the_other(
    warm: Path, short_dir: Path
) -> None:
    """It is asked for help, so that it prints something and ends. The pipe is open until both have."""
    done = handed_over(warm, short_dir)
    assert "handed over: True" in done.stdout, done.stderr
    assert "Run a Flower ClientApp" in done.stdout
    assert "so-agent says" in done.stdout  # that it has ended, and how much memory it took
    assert (short_dir / "trainer.json").exists()  # it said who it is


def test_without_one_a_trainer_does_its_imports_itself(short_dir: Path) -> None:
    assert "handed over: False" in handed_over(short_dir / "nobody", short_dir).stdout


def test_a_trainer_does_not_wait_for_it_when_the_arm_is_needed(warm: Path, short_dir: Path) -> None:
    assert "handed over: False" in handed_over(warm, short_dir, stop="True").stdout


async def test_one_that_was_killed_is_started_again_after_the_next_reply_and_not_before(short_dir: Path) -> None:
    """At once would be a circle where memory ran out; never would leave all later trainers cold."""
    folders = Folders(short_dir)
    folders.work.mkdir()
    node = SuperNode(folders, Room("test", short_dir, 2 * 10**9, folders.tenant), lambda: None)
    try:
        await node.warm_up()
        first = node.warm_pid
        assert first is not None
        await node.warm_up()
        assert node.warm_pid == first  # one is enough
        os.kill(first, signal.SIGKILL)
        await until("it is gone", lambda: node.warm_pid is None, 10)
        await node.warm_up()
        assert node.warm_pid is None
        node.diary.hear("Sent successfully")
        await node.warm_up()
        assert node.warm_pid not in (None, first)
    finally:
        await node.cool_down()
    assert node.warm_pid is None
