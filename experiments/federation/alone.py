"""The same steps without a federation: one station by itself, or all data in one place.

The app's own trainer and optimiser, only that nobody averages anything. A round is where the rate is lowered and the
optimiser begins anew, as a station's does; without a server there is no need of many.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from agent.fl.dataset import divide
from agent.fl.exchange import VERSION, Terms
from agent.fl.layout import Shape, layout
from agent.fl.run_folder import Round, RunFolder
from agent.fl.settings import Settings
from agent.fl.statistics import of_policy
from agent.fl.trainer import Trainer
from agent.fl.workplace import Portion, Workplace
from agent.inference.bundle import Bundle

NUMBER: Final = 100
"""Enters the seeds of a trainer; a federation's stations have those from 0 on."""


def learn(
    folder: RunFolder,
    base: Bundle,
    dataset: Path,
    settings: Settings,
    progress: Callable[[Round], None],
) -> None:
    """All rounds, or those that are left. Each is on the disk before the next one begins."""
    plan = layout(base, Shape.of(settings))
    common = folder.common() or folder.begin(settings, base, of_policy(base), plan.begin(base, settings.seed))
    folder.check_same(common, settings, base)
    last = folder.last()
    arrays = last.arrays()
    portion = Portion(dataset, divide(dataset, settings.held_out))
    place = Workplace(NUMBER, (portion,), settings.threads, "cpu", simulated=True)
    for number in range(last.manifest.round + 1, settings.num_server_rounds + 1):
        began = datetime.now(UTC).isoformat(timespec="seconds")
        terms = Terms(
            version=VERSION,
            run=settings.name,
            server_round=number,
            rounds=settings.num_server_rounds,
            final=False,
            policy=base.manifest.name,
            policy_hash=base.hash,
            statistics=common.statistics,
        )
        trainer = Trainer(base, place, settings, terms)
        trainer.load(arrays)
        work = trainer.train()
        arrays = {name: value + work.change[name] for name, value in arrays.items()}
        done = Round(number, began, work.seconds, 1, 1, 1, rows=work.rows, steps=work.steps, train_loss=work.loss)
        folder.keep(common, settings, done, arrays, {})
        progress(done)
