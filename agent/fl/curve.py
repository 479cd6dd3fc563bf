"""The losses of a federated run by round, as a picture and as numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from agent.fl.run_folder import Round

PICTURE: Final = "curve.png"
NUMBERS: Final = "curve.json"


def write(folder: Path, title: str, rounds: Sequence["Round"]) -> None:
    """`curve.json` and `curve.png`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    (folder / NUMBERS).write_text(json.dumps([msgspec.to_builtins(each) for each in rounds], indent=1) + "\n")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    judged = [(each.round, each.held_out_loss) for each in rounds if each.held_out_loss is not None]
    trained = [(each.round, each.train_loss) for each in rounds if each.train_loss is not None]
    for points, style, label in ((judged, "o-", "held-out episodes, global adapter"), (trained, ".:", "training")):
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set_xlabel("round")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if judged or trained:
        axes.legend()
    stations = max((each.used for each in rounds), default=0)
    axes.set_title(f"{title}: up to {stations} stations a round", fontsize=9, wrap=True)
    figure.savefig(folder / PICTURE, dpi=100)
