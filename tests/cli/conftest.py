"""Run `so-agent` in this process, with what it printed and its exit code."""

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.cli import execute
from agent.cli.command import CONFIG_VARIABLE
from tests.cli.wire import Agent, Answer


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell has what it starts in the background ignore Ctrl-C, and whatever tests start would inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


type Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> Cli:
    """`cli("teleop", "start")`. The home folder is empty: no station of this machine is in reach."""
    monkeypatch.setenv("HOME", str(short_dir / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = execute([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def agent(short_dir: Path) -> Iterator[Callable[[dict[str, Answer]], Agent]]:
    """Start an agent with these answers on the socket `short_dir/run/agent.sock`."""
    running: list[Agent] = []

    def start(answers: dict[str, Answer]) -> Agent:
        it = Agent(short_dir / "run" / "agent.sock", answers).__enter__()
        running.append(it)
        return it

    yield start
    for it in running:
        it.__exit__()
