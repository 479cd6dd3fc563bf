"""`so-agent train`: what people and programs see of a training."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

from agent.api.local import serve
from agent.clock import SystemClock
from agent.config import StationConfig, load
from agent.errors import Exit
from agent.inference.importer import Wish, import_checkpoint
from agent.inference.training.folder import newest_checkpoint
from agent.modes import Mode
from agent.robot.recording.repair import repair
from agent.station import Station
from tests.cli.conftest import Cli, Result
from tests.cli.wire import Agent, Answer
from tests.inference.checkpoints import smolvla
from tests.recording.made import journal
from tests.station.live import wait_for

ROOT = Path(__file__).resolve().parents[2]

type Train = Callable[..., Result]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy `reach` and a dataset `kitchen` of three episodes. Not to be changed; copy it."""
    folder = tmp_path_factory.mktemp("station")
    arm = {"model": "so101", "follower": {"port": "/dev/none", "id": "follower"}, "calibration_dir": str(folder)}
    values: dict[str, Any] = {"station": "test", "state_dir": folder, "robot": arm, "recording": {"dataset": "kitchen"}}
    config = StationConfig(**values)
    for number in range(3):
        journal(config.paths.journal, 8, first=1, number=number, dataset="kitchen", task="wipe the table")
    repair(config)
    import_checkpoint(
        smolvla(tmp_path_factory.mktemp("checkpoints") / "reach", chunk_size=4), config.paths.policies, Wish("reach")
    )
    return folder


@pytest.fixture
def file(make_config: Any, short_dir: Path, state: Path) -> Path:
    """The configuration of a station with a copy of them. Its agent's socket, if any, is short_dir/run/agent.sock."""
    for part in ("policies", "datasets"):
        shutil.copytree(state / part, short_dir / "state" / part)
    path = short_dir / "station.yaml"
    config = make_config(run_dir=str(short_dir / "run"), recording={"dataset": "kitchen"})
    path.write_text(config.model_dump_json())  # JSON is YAML
    return path


@pytest.fixture
def train(cli: Cli, file: Path) -> Train:
    return lambda *words: cli("train", *words, "-c", file)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_saves_and_says_how_to_go_on_and_that_ends_in_a_new_policy(train: Train, cli: Cli, file: Path) -> None:
    """Ctrl-C as a terminal sends it, to the whole group of processes."""
    command = [sys.executable, "-m", "agent.cli", "train", "--policy", "reach", "--steps", "40", "-c", file, "--json"]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    assert running.stdout
    for line in running.stdout:
        if json.loads(line)["event"] == "step":
            os.killpg(running.pid, signal.SIGINT)
            break
    out, err = running.communicate()
    assert running.returncode == 130, err
    *_, saved, stopped, last = lines(out)
    assert saved["event"] == "saved"
    assert stopped == {"event": "stopped", "step": saved["step"], "steps": 40}
    assert 0 < saved["step"] < 40
    assert last["resume"] == "so-agent train --resume --name reach-kitchen"
    begun = train("--policy", "reach", "--steps", 40)
    assert begun.code == Exit.BAD_INPUT
    assert "Go on with `so-agent train --resume --name reach-kitchen`" in begun.err
    result = train("--resume")
    assert result.code == 0, result.err
    assert f"Going on at step {saved['step']}." in result.err
    assert "step 40 of 40, loss" in result.err
    assert "held-out episodes" in result.out
    assert "reach-kitchen" in result.out
    assert cli("policy", "verify", "reach-kitchen", "-c", file).code == 0
    about = cli("policy", "show", "reach-kitchen", "-c", file, "--json").json
    assert about["tasks"] == ["wipe the table"]
    assert "fine-tuned on 2 episodes of kitchen: 40 steps of 8, expert, seed 0" in about["description"]
    assert "is done" in train("--resume", "--name", "reach-kitchen").err
    assert cli("policy", "show", "reach", "-c", file).code == 0


class Quiet:
    """An agent without children, whose mode is changed by hand."""

    def __init__(self, file: Path) -> None:
        self.station: Station | None = None
        self._file = file
        self._up, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self.station = Station(load(self._file), SystemClock())
        self._loop = asyncio.get_running_loop()
        async with serve(self.station.paths.agent_socket, self.station.handle):
            self._up.set()
            await asyncio.to_thread(self._over.wait)

    def to(self, mode: Mode) -> None:
        assert self.station
        self._loop.call_soon_threadsafe(self.station.machine.to, mode, "a test")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(20)
        self.to(Mode.IDLE)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(20)


def stands_still(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def next_step(running: "subprocess.Popen[str]") -> int:
    assert running.stdout
    return next(event["step"] for line in running.stdout if (event := json.loads(line))["event"] == "step")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_stands_still_while_the_arm_is_used_and_nothing_is_lost_by_a_kill_meanwhile(file: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "agent.cli",
        "train",
        "--policy",
        "reach",
        "--steps",
        "100000",
        "-c",
        file,
        "--json",
    ]
    with Quiet(file) as agent:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        next_step(running)
        child = int(Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text())
        agent.to(Mode.ALIGNING)
        wait_for("the training stands still", lambda: stands_still(child))
        agent.to(Mode.HOLD)
        wait_for("the training goes on", lambda: not stands_still(child))
        step = next_step(running)
        agent.to(Mode.EXECUTING)
        wait_for("the training stands still again", lambda: stands_still(child))
        running.kill()
        running.wait()
        work = file.parent / "state/training/reach-kitchen"
        wait_for("what it learnt is saved", lambda: newest_checkpoint(work), 60.0)
        wait_for("it has ended", lambda: not Path(f"/proc/{child}").exists(), 60.0)
        saved = newest_checkpoint(work)
        assert saved
        assert int(saved.name) >= step


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_the_process_finds_wrong_is_an_error_of_the_command(train: Train, file: Path) -> None:
    """A video that is no video: found only by who reads it. Nothing was learnt, so nothing is left."""
    for video in (file.parent / "state/datasets/kitchen").rglob("*.mp4"):
        video.write_bytes(b"no video")
    result = train("--policy", "reach", "--steps", 2, "--json")
    assert result.code == Exit.DEVICE_FAULT
    *_, last = lines(result.out)
    assert last["ok"] is False
    assert last["message"].startswith("Training failed: ")
    assert not (file.parent / "state/training/reach-kitchen").exists()


@pytest.mark.parametrize("mode", ["executing", "teleop", "aligning", "homing", "starting"])
def test_it_is_refused_while_the_arm_is_used(
    train: Train, agent: Callable[[dict[str, Answer]], Agent], mode: str
) -> None:
    agent({"status": {"mode": mode, "reason": "somebody is there"}})
    result = train("--policy", "reach", "--steps", 2)
    assert result.code == Exit.REFUSED
    assert f"The arm is in mode {mode}: somebody is there." in result.err
    assert "--anyway" in result.err
    assert train("--policy", "unknown", "--steps", 2, "--anyway").code == Exit.BAD_INPUT  # the next thing it looks at


@pytest.mark.parametrize("mode", ["idle", "hold", "estop", "fault"])
def test_it_is_allowed_while_the_arm_rests(
    train: Train, agent: Callable[[dict[str, Answer]], Agent], mode: str
) -> None:
    agent({"status": {"mode": mode, "reason": "nobody"}})
    result = train("--policy", "unknown", "--steps", 2)
    assert result.code == Exit.BAD_INPUT
    assert f"The agent runs, and the arm is in mode {mode}." in result.err
    assert "There is no policy unknown" in result.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--policy", "unknown", "--steps", "2"], "There is no policy unknown"),
        (["--policy", "reach", "--dataset", "garden", "--steps", "2"], "There are kitchen."),
        (["--policy", "reach"], "--steps is missing"),
        (["--policy", "reach", "--steps", "2", "--method", "magic"], "lora or expert or full"),
        (["--policy", "reach", "--steps", "2", "--name", "reach"], "There is a policy reach already"),
        (["--policy", "reach", "--steps", "2", "--device", "tpu"], "There is no --device tpu"),
        (["--policy", "reach", "--steps", "2", "--hold-out", "3"], "none would be left"),
        (["--resume"], "No training was interrupted"),
        (["--resume", "--name", "x"], "No training x was begun"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_with_what_to_do(train: Train, words: list[str], says: str) -> None:
    result = train(*words)
    assert result.code == Exit.BAD_INPUT
    assert says in result.err
    assert result.out == ""
    told = train(*words, "--json")
    assert told.json["code"] == "bad-input"
    assert told.err == ""


def test_it_has_an_example(cli: Cli) -> None:
    assert "Example: so-agent train" in cli("train", "--help").out
