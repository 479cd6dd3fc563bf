"""One training, from the work folder as it is to the end of its plan, or to a stop."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.errors import Fatal
from agent.inference.bundle import open_bundle
from agent.inference.importer import SPARE_BYTES
from agent.inference.loading import load_policy
from agent.inference.training import curve, saved
from agent.inference.training.folder import CHECKPOINTS, RESULT, alone, newest_checkpoint
from agent.inference.training.learner import Learner
from agent.inference.training.messages import Began, Event, Job, Learnt, Saved, Stepped, Stopped, Validated
from agent.inference.training.plan import read_plan
from agent.inference.training.rows import Rows

SAY_EVERY_S: Final = 0.5

type Say = Callable[[Event], None]


class Training:
    """What it does it says through `say`, in between steps."""

    def __init__(self, job: Job, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._job, self._say, self._clock = job, say, clock
        self._work = Path(job.work)
        self._plan = read_plan(self._work)
        self._checkpoints = self._work / CHECKPOINTS
        self._stopping = False

    def stop(self) -> None:
        """Save and end after the present step."""
        self._stopping = True

    def run(self) -> Learnt | None:
        """What was learnt; None when it was stopped before. Raises the agent's errors."""
        with alone(self._work):
            return self._run()

    def _run(self) -> Learnt | None:
        job, plan = self._job, self._plan
        loaded = load_policy(open_bundle(Path(job.bundle)), job.device)
        rows = Rows(plan, Path(job.dataset), loaded.policy.config, job.device)
        learner = Learner(loaded, plan, rows)
        progress = saved.Progress()
        if checkpoint := newest_checkpoint(self._work):
            progress = saved.progress_of(checkpoint)
            learner.restore(checkpoint)
        self._check_space(2 * learner.checkpoint_bytes + 4 * learner.parameters)
        self._say(
            Began(
                learner.step, plan.steps, len(rows), len(plan.held_out), learner.trained, learner.parameters,
                job.device, job.threads,
            )
        )  # fmt: skip
        if progress.before is None and learner.step == 0 and not self._stopping:
            progress.before = self._validated(learner)
        self._learn(learner, progress)
        if learner.step < plan.steps:
            self._say(Stopped(learner.step, plan.steps))
            return None
        after = self._validated(learner)
        result = self._work / RESULT
        shutil.rmtree(result, ignore_errors=True)  # of a process that was killed
        learner.export(result)
        both = [(step, loss) for step, loss in ((0, progress.before), (plan.steps, after)) if loss is not None]
        curve.write(self._work, plan.sentence, progress.curve, both)
        first, last = curve.ends(progress.curve)
        return Learnt(plan.steps, progress.before, after, first, last, progress.seconds, rows.tasks)

    def _learn(self, learner: Learner, progress: saved.Progress) -> None:
        steps, point = self._plan.steps, curve.every(self._plan.steps)
        began_s = saved_s = said_s = self._clock()
        earlier_s, losses, kept = progress.seconds, [], learner.step

        def save() -> None:
            nonlocal kept, saved_s
            if learner.step != kept:
                saved.save(self._checkpoints, progress, learner.save)
                kept = learner.step
                self._say(Saved(learner.step))
            saved_s = self._clock()

        while learner.step < steps and not self._stopping:
            loss = learner.learn()
            losses.append(loss)
            progress.window.append(loss)
            progress.step = learner.step
            if learner.step % point == 0 or learner.step == steps:
                progress.curve.append((learner.step, sum(progress.window) / len(progress.window)))
                progress.window.clear()
            now_s = self._clock()
            progress.seconds = earlier_s + now_s - began_s
            if now_s - said_s >= SAY_EVERY_S or learner.step == steps:
                each_s = (now_s - said_s) / len(losses)
                left_s = (steps - learner.step) * each_s
                mean = sum(losses) / len(losses)
                self._say(Stepped(learner.step, steps, mean, learner.rate, 1 / max(each_s, 1e-9), left_s))
                losses, said_s = [], now_s
            if now_s - saved_s >= self._job.save_every_s:
                save()
        save()

    def _validated(self, learner: Learner) -> float | None:
        loss = learner.validate()
        if loss is not None:
            self._say(Validated(learner.step, loss))
        return loss

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._work).free
        if free < needed + SPARE_BYTES:
            raise Fatal(
                f"The training needs {needed / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free in {self._work}.",
                "Free disk space, or give --method lora.",
            )
