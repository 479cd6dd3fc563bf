"""Begin a training or go on with one, listen to its process, and make a bundle of what it leaves.

Needs neither torch nor lerobot; they are in the process.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

import msgspec

from agent.config import NAME_PATTERN, StationConfig
from agent.errors import BadInput, DeviceFault, Refused, from_code
from agent.inference import importer
from agent.inference.bundle import Bundle
from agent.inference.importer import import_checkpoint, sync
from agent.inference.library import Library
from agent.inference.training.folder import (
    BASE,
    CHECKPOINTS,
    LOG,
    PLAN,
    RESULT,
    SUMMARY,
    alone,
    newest_checkpoint,
)
from agent.inference.training.messages import DECODER, Event, Failed, Job, Learnt
from agent.inference.training.plan import (
    Plan,
    Statistics,
    Wish,
    check_same,
    make_plan,
    read_plan,
    suggested_name,
    work_folder,
    write_plan,
)

TASKS_KEPT: Final = 20
SAVE_EVERY_S: Final = 60.0


@dataclass(frozen=True)
class Share:
    """How much of the computer a training may have."""

    device: str = "cpu"
    threads: int = 1
    save_every_s: float = SAVE_EVERY_S


def begin(config: StationConfig, wish: Wish, share: Share) -> "Supervisor":
    """A new training. Raises BadInput for a wish that cannot be fulfilled, and rather than touch what is there."""
    bundle = Library(config.paths.policies, config.paths.policy_in_use).open(wish.policy)
    dataset = wish.dataset or config.recording.dataset
    if not re.fullmatch(NAME_PATTERN, dataset):
        raise BadInput(
            f"{dataset!r} is not the name of a dataset.", f"Name a folder in {config.paths.datasets}: --dataset NAME."
        )
    plan = make_plan(wish, bundle, config.paths.datasets / dataset)
    if (config.paths.policies / plan.name).exists():
        raise BadInput(
            f"There is a policy {plan.name} already.",
            f"Give another --name, or `so-agent policy remove {plan.name}` first.",
        )
    work = work_folder(config, plan.name)
    if (work / SUMMARY).exists() or newest_checkpoint(work):
        done = (work / SUMMARY).exists()
        hint = "" if done else f"Go on with `so-agent train --resume --name {plan.name}`. "
        raise BadInput(
            f"A training {plan.name} was {'done' if done else 'begun'} before.",
            f"{hint}To begin anew give another --name, or remove {work}.",
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
        with alone(work):
            write_plan(work, plan)
    except OSError as error:
        raise BadInput(
            f"Cannot write to {work}: {error.strerror}.", "Free disk space, or set another state_dir."
        ) from error
    return Supervisor(config, plan, bundle, share)


def go_on(config: StationConfig, wish: Wish, share: Share) -> "Supervisor":
    """A training that was interrupted. Raises BadInput when it was another, is done, or its policy has changed."""
    plan = read_plan(work_folder(config, _which(config, wish)))
    check_same(replace(wish, name=None), plan)
    work = work_folder(config, plan.name)
    if (work / SUMMARY).exists():
        raise BadInput(
            f"The training {plan.name} is done.", f"To learn more begin another: --policy {plan.name} --name NAME."
        )
    bundle = Library(config.paths.policies, config.paths.policy_in_use).open(plan.policy)
    if bundle.hash != plan.policy_hash:
        raise BadInput(
            f"{plan.name} was begun with {plan.policy} {plan.policy_hash}, which is {bundle.hash} now.",
            "Import the former again, or begin another with --name.",
        )
    return Supervisor(config, plan, bundle, share)


def _which(config: StationConfig, wish: Wish) -> str:
    """The training that was meant: by name, by what it is made of, or because only one was not finished."""
    if wish.name:
        if not re.fullmatch(NAME_PATTERN, wish.name):
            raise BadInput(f"{wish.name!r} cannot be the name of a training.", "Name one with --name.")
        return wish.name
    if wish.policy and wish.dataset:
        return suggested_name(wish.policy, wish.dataset)
    begun = sorted(
        path.parent.name
        for path in work_folder(config, "x").parent.glob(f"*/{PLAN}")
        if not path.with_name(SUMMARY).exists()
    )
    match begun:
        case [only]:
            return only
        case []:
            raise BadInput("No training was interrupted.", "Leave out --resume to begin one.")
        case _:
            raise BadInput(f"More than one training was interrupted: {', '.join(begun)}.", "Name one with --name.")


class Supervisor:
    """One training of a station."""

    def __init__(self, config: StationConfig, plan: Plan, bundle: Bundle, share: Share) -> None:
        self._config, self.plan, self._bundle, self._share = config, plan, bundle, share
        self.work = work_folder(config, plan.name)
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = False  # to stop
        self._code = 0

    def run(self, hear: Callable[[Event], None]) -> Learnt | None:
        """Until it is done; None when it was stopped before. Raises the agent's errors."""
        learnt = None
        with (self.work / LOG).open("ab") as log, self._process(log) as output:
            for line in output:
                event = DECODER.decode(line)
                if isinstance(event, Failed):
                    raise from_code(event.code, event.message, event.hint)
                if isinstance(event, Learnt):
                    learnt = event
                hear(event)
        code = self._code
        if code and not (self._asked and code == -signal.SIGTERM):  # it had not begun to listen
            ended = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise DeviceFault(
                f"The training process ended by itself ({ended}).",
                f"Signal 9 mostly means that the memory did not suffice. See {self.work / LOG}; go on with "
                f"`{self.how_to_go_on}`.",
            )
        return learnt

    def stop(self) -> None:
        """Let it save and end; `run` returns then."""
        self._asked = True
        self.thaw()
        if self._child and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def freeze(self) -> None:
        """Let it stand still, at once, with everything that it has started."""
        if not self._asked:
            self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._child and self._child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)

    def kill(self) -> None:
        """What it learnt since it last saved is lost."""
        if self._child:
            self._child.kill()

    @property
    def saved(self) -> bool:
        """Whether there is something to go on from."""
        return newest_checkpoint(self.work) is not None

    @property
    def how_to_go_on(self) -> str:
        return f"so-agent train --resume --name {self.plan.name}"

    def publish(self, learnt: Learnt, trial: Callable[[Bundle], None] | None = None) -> Bundle:
        """The new bundle, tried. The work folder keeps the plan, the curve and a summary. Raises BadInput."""
        old = self._bundle.manifest
        tasks = tuple(dict.fromkeys((*old.tasks, *learnt.tasks)))[:TASKS_KEPT]
        bundle = import_checkpoint(
            self.work / RESULT,
            self._config.paths.policies,
            importer.Wish(
                name=self.plan.name,
                fps=old.fps,
                cameras=old.cameras,
                vlm=self._bundle.vlm,
                description=self.plan.sentence,
                tasks=tasks,
            ),
            trial,
        )
        summary = msgspec.structs.asdict(learnt) | {"policy": bundle.manifest.name, "hash": bundle.hash}
        (self.work / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        sync(self.work / SUMMARY)
        for part in (RESULT, CHECKPOINTS, BASE):
            shutil.rmtree(self.work / part, ignore_errors=True)
        return bundle

    def forget(self) -> None:
        """Remove the work folder of a training that never began to learn, unless another process has it."""
        with suppress(Refused), alone(self.work):
            shutil.rmtree(self.work, ignore_errors=True)

    @contextmanager
    def _process(self, log: IO[bytes]) -> Iterator[IO[bytes]]:
        """What the process says. It has ended when this is left, whatever happened."""
        job = Job(
            work=str(self.work),
            bundle=str(self._taught_from()),
            dataset=str(self._config.paths.datasets / self.plan.dataset),
            device=self._share.device,
            threads=self._share.threads,
            save_every_s=self._share.save_every_s,
        )
        command = [sys.executable, "-m", "agent.inference.training.process", msgspec.json.encode(job).decode()]
        # In a session of its own: Ctrl-C reaches only this process, which then asks it to save.
        self._child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
        assert self._child.stdout is not None  # noqa: S101 - a pipe was asked for
        try:
            yield self._child.stdout
        except BaseException:
            self.stop()
            raise
        finally:
            self._child.stdout.close()
            self._code = self._child.wait()

    def _taught_from(self) -> Path:
        """The policy; with the dataset's statistics, a copy that has them."""
        if self.plan.statistics is Statistics.KEEP:
            return self._bundle.folder
        copy = self.work / BASE / self.plan.policy
        if not copy.exists():
            old = self._bundle.manifest
            dataset = self._config.paths.datasets / self.plan.dataset
            wish = importer.Wish(
                name=self.plan.policy, fps=old.fps, cameras=old.cameras, vlm=self._bundle.vlm, statistics=dataset
            )
            import_checkpoint(self._bundle.policy, copy.parent, wish)
        return copy
