"""What a station does when the server asks: train, evaluate, query. `app` is what Flower loads.

Its process is a new one for each message on a station, and the same for many in a simulation.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from agent.fl.adapter import open_adapter, write_adapter
from agent.fl.compression import from_wire
from agent.fl.exchange import ARRAYS, CONFIG, METRICS, WEIGHT, Decline, Declined, Terms, read_terms
from agent.fl.layout import Shape, layout
from agent.fl.mods import arrays_of, compressing, declining, protecting, record_of, wanted_privacy
from agent.fl.settings import Settings, read_settings
from agent.fl.workplace import Workplace, workplace
from agent.inference.bundle import Bundle

app = ClientApp(mods=[declining, compressing, protecting])

NEEDED: Final = "The arm is needed."


class _Asked:
    """What a message of training or evaluation is about."""

    def __init__(self, message: Message, context: Context) -> None:
        self.settings: Settings = read_settings(context.run_config)
        self.terms: Terms = read_terms(message.content.config_records[CONFIG])
        self.place: Workplace = workplace(self.settings, context.node_config)
        self.base: Bundle = self.place.base(self.settings, self.terms.policy_hash)
        self.shape = Shape.of(self.settings)
        plan = layout(self.base, self.shape)
        self.arrays = from_wire(arrays_of(message), plan.arrays)
        self.parameters = plan.policy_parameters


@app.train()
def train(message: Message, context: Context) -> Message:
    """Some steps from the global adapter on. The change is fp32 here; mods make of it what travels."""
    settings = read_settings(context.run_config)
    _unless_needed(workplace(settings, context.node_config))  # before anything is read that takes time
    asked = _Asked(message, context)
    asked.place.has_memory_for(asked.parameters)
    from agent.fl.trainer import Trainer

    trainer = Trainer(asked.base, asked.place, settings, asked.terms)
    trainer.load(asked.arrays)
    _unless_needed(asked.place)
    work = trainer.train()
    if work.rows < (settings.enough if work.stopped else 1):
        raise Declined(Decline.BUSY, f"{NEEDED} {work.steps} of {settings.local_steps} steps were done.")
    metrics = {
        WEIGHT: work.rows,
        "steps": work.steps,
        "asked": settings.local_steps,
        "train-loss": work.loss,
        "preempted": work.stopped,
        "seconds": work.seconds,
        "epsilon": 0.0,
    }
    content = RecordDict({ARRAYS: record_of(work.change), METRICS: _metrics(metrics)})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """How good the global adapter is on this station's held-out episodes. A finished run's adapter is kept."""
    asked = _Asked(message, context)
    kept = asked.terms.final and asked.place.candidates is not None
    if kept:
        _keep(asked)
    rows, loss, seconds = 0, 0.0, 0.0
    if asked.place.wanted_elsewhere:
        if not kept:
            raise Declined(Decline.BUSY, NEEDED)
    elif wanted_privacy(asked.settings) is None:
        asked.place.has_memory_for(asked.parameters)
        from agent.fl.trainer import Trainer

        trainer = Trainer(asked.base, asked.place, asked.settings, asked.terms)
        trainer.load(asked.arrays)
        judged = trainer.judge()
        rows, loss, seconds = judged.rows, judged.loss, judged.seconds
    metrics = {WEIGHT: rows, "held-out-loss": loss, "seconds": seconds}
    return Message(RecordDict({METRICS: _metrics(metrics)}), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Whether this station would take part now, and how much it has to learn from."""
    place = workplace(read_settings(context.run_config), context.node_config)
    rows, episodes, held_out = place.counts()
    metrics = {
        "ready": not place.wanted_elsewhere,
        "rows": rows,
        "episodes": episodes,
        "held-out-episodes": held_out,
    }
    return Message(RecordDict({METRICS: _metrics(metrics)}), reply_to=message)


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """What the joints do here: count, mean and M2. Only where a person agreed that it may be told."""
    from agent.fl.statistics import of_rows, pool

    settings = read_settings(context.run_config)
    place = workplace(settings, context.node_config)
    if not place.share_statistics or wanted_privacy(settings) is not None:
        raise Declined(Decline.NOT_AGREED, "This station does not tell what its joints do.")
    parts = [of_rows(part.dataset, part.episodes.learnt) for part in place.portions if part.episodes.learnt]
    if not parts:
        raise Declined(Decline.NO_DATA, "There are no episodes to learn from.")
    return Message(RecordDict({METRICS: MetricRecord(pool(parts))}), reply_to=message)  # type: ignore[arg-type]


def _unless_needed(place: Workplace) -> None:
    if place.wanted_elsewhere:
        raise Declined(Decline.BUSY, NEEDED)


def _keep(asked: _Asked) -> None:
    """The adapter of a finished run, once."""
    assert asked.place.candidates is not None  # noqa: S101 - just asked
    folder = asked.place.candidates / asked.terms.run
    if folder.exists() and open_adapter(folder).manifest.round == asked.terms.server_round:
        return
    write_adapter(
        folder,
        asked.arrays,
        asked.shape,
        run=asked.terms.run,
        number=asked.terms.server_round,
        rounds=asked.terms.rounds,
        policy=asked.terms.policy,
        policy_hash=asked.terms.policy_hash,
        statistics=asked.terms.statistics,
    )


def _metrics(values: Mapping[str, Any]) -> MetricRecord:
    return MetricRecord({name: float(np.float64(value)) for name, value in values.items()})
