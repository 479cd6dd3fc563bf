"""A few steps on a station's own episodes, by the same code as `so-agent train`, interruptible at each step."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from agent.errors import BadInput, Fatal
from agent.fl.brief import Progress
from agent.fl.exchange import Decline, Declined, Terms
from agent.fl.layout import Shape
from agent.fl.settings import Settings
from agent.fl.statistics import give
from agent.fl.workplace import Portion, Workplace
from agent.inference.bundle import Bundle
from agent.inference.loading import load_policy
from agent.inference.training.learner import Learner, Lora
from agent.inference.training.plan import Plan, Wish, make_plan
from agent.inference.training.rows import Rows

PEFT_NAME: Final = ".default"
"""How peft calls an adapter that nobody gave a name; in files and on the wire it is left out."""

TELL_EVERY_S: Final = 0.5

type Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Work:
    """What came of training."""

    change: Arrays  # weights after it, minus those before
    steps: int
    rows: int  # really used, each as often as it was
    loss: float  # mean over the steps
    stopped: bool  # before all steps were done
    seconds: float


@dataclass(frozen=True)
class Judged:
    """What came of a look at held-out episodes."""

    rows: int
    loss: float
    seconds: float


class Trainer:
    """Base policy and episodes of one workplace, for one message."""

    def __init__(self, base: Bundle, place: Workplace, settings: Settings, terms: Terms) -> None:
        """Raises Declined when no dataset fits the policy, BadInput when the run's statistics or targets do not."""
        torch.set_num_threads(place.threads)
        self._place, self._settings, self._terms = place, settings, terms
        shape = Shape.of(settings)
        seed = _seed(settings.seed, terms.server_round, place.number)
        plans = _plans(base, place.portions, settings, terms.server_round, seed)
        loaded = load_policy(base, place.device)
        if terms.statistics:
            give(loaded, terms.statistics)
        self._rows = _Mixed([Rows(plan, there, loaded.policy.config, place.device) for plan, there in plans])
        self._learner = Learner(loaded, plans[0][0], self._rows, Lora(shape.rank, shape.alpha, shape.pattern), False)

    def load(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """The global adapter. Raises Declined when it does not fit."""
        names = {_short(name): name for name in self._learner.changing()}
        if set(names) != set(arrays):
            raise Declined(Decline.NOT_AGREED, "The adapter is not one of this policy.")
        try:
            self._learner.load({names[name]: torch.from_numpy(value) for name, value in arrays.items()})
        except BadInput as error:
            raise Declined(Decline.NOT_AGREED, str(error)) from error

    def train(self, clock: Callable[[], float] = time.monotonic) -> Work:
        """Until all steps are done, the time is over, or the arm is wanted. Raises Declined where the loss is no
        number."""
        settings, before = self._settings, self._arrays()
        if self._terms.proximal_mu:
            self._learner.stay_near(self._terms.proximal_mu)
        began_s = told_s = clock()
        losses: list[float] = []
        while len(losses) < settings.local_steps:
            if self._place.wanted_elsewhere or 0 < settings.local_seconds <= clock() - began_s:
                break
            try:
                losses.append(self._learner.learn())
            except Fatal as error:
                raise Declined(Decline.FAILED, error.message) from error
            if clock() - told_s >= TELL_EVERY_S:
                told_s = clock()
                self._tell("training", len(losses), losses[-1])
        after = self._arrays()
        return Work(
            change={name: after[name] - value for name, value in before.items()},
            steps=len(losses),
            rows=self._learner.seen,
            loss=sum(losses) / len(losses) if losses else 0.0,
            stopped=len(losses) < settings.local_steps,
            seconds=clock() - began_s,
        )

    def judge(self, clock: Callable[[], float] = time.monotonic) -> Judged:
        """The loss on held-out rows, with the same rows and random numbers each time; no rows where none are."""
        self._tell("evaluating", 0, None)
        began_s = clock()
        loss = self._learner.validate()
        return Judged(self._rows.judged if loss is not None else 0, loss or 0.0, clock() - began_s)

    def _arrays(self) -> Arrays:
        found = self._learner.changing().items()
        return {_short(name): value.detach().cpu().to(torch.float32).numpy().copy() for name, value in found}

    def _tell(self, doing: str, step: int, loss: float | None) -> None:
        terms = self._terms
        self._place.tell(
            Progress(terms.run, terms.server_round, terms.rounds, doing, step, self._settings.local_steps, loss)
        )


class _Mixed:
    """Rows of several datasets as if of one: each batch is of one of them, drawn in proportion to their sizes."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self.judged = 0  # rows in the last look at held-out ones

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    @property
    def episodes(self) -> int:
        return sum(part.episodes for part in self._parts)

    def batches(self, step: int) -> Iterator[dict[str, Any]]:
        dice = random.Random(len(self))  # noqa: S311 - which dataset comes next; the rows in it depend on the seed
        streams = [part.batches(step) for part in self._parts]
        sizes = [len(part) for part in self._parts]
        while True:
            yield next(dice.choices(streams, sizes)[0])

    def held_out(self) -> Iterator[dict[str, Any]]:
        self.judged = 0
        for part in self._parts:
            for batch in part.held_out():
                self.judged += len(batch["index"])
                yield batch


def _plans(
    base: Bundle, portions: Sequence[Portion], settings: Settings, number: int, seed: int
) -> list[tuple[Plan, Any]]:
    """Of each dataset that fits the policy and has something to learn from. Raises Declined when none does."""
    wish = Wish(
        steps=settings.local_steps,
        name=settings.name,
        method=settings.method,
        batch=settings.batch_size,
        rate=settings.rate(max(1, number)),
        seed=seed,
        hold_out=0,
    )
    plans, reasons = [], []
    for portion in portions:
        if not portion.episodes.learnt:
            reasons.append(f"{portion.dataset.name} has no episodes to learn from")
            continue
        try:
            plan = make_plan(wish, base, portion.dataset)
        except BadInput as error:
            reasons.append(error.message)
            continue
        episodes = portion.episodes
        plan = msgspec.structs.replace(plan, episodes=episodes.learnt, held_out=episodes.held_out)
        plans.append((plan, portion.dataset))
    if not plans:
        raise Declined(Decline.NO_DATA, "; ".join(reasons) or "No dataset of this station may be learnt from.")
    return plans


def _seed(run: int, number: int, place: int) -> int:
    return int(np.random.SeedSequence([run, number, place]).generate_state(1)[0]) >> 1


def _short(name: str) -> str:
    return name.replace(f"{PEFT_NAME}.weight", ".weight")
