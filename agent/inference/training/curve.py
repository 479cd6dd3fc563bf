"""The losses of a training, as a picture and as numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PICTURE: Final = "curve.png"
NUMBERS: Final = "curve.json"

POINTS: Final = 200
"""A single batch says little: of long trainings, each is the mean of many."""


def every(steps: int) -> int:
    """How many steps one point of the curve stands for."""
    return max(1, -(-steps // POINTS))


def ends(curve: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Mean of the first and of the last tenth."""
    if not curve:
        return float("nan"), float("nan")
    losses = [loss for _, loss in curve]
    part = max(1, len(losses) // 10)
    return sum(losses[:part]) / part, sum(losses[-part:]) / part


def write(folder: Path, title: str, curve: Sequence[tuple[int, float]], validated: Sequence[tuple[int, float]]) -> None:
    """`curve.json` and `curve.png`."""
    from matplotlib.figure import Figure

    points = {
        "training": [{"step": step, "loss": loss} for step, loss in curve],
        "held_out": [{"step": step, "loss": loss} for step, loss in validated],
    }
    (folder / NUMBERS).write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([step for step, _ in curve], [loss for _, loss in curve], color="tab:blue", lw=1, label="training")
    if validated:
        axes.plot(
            [step for step, _ in validated],
            [loss for _, loss in validated],
            "o--",
            color="tab:orange",
            label="held out",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title(title, fontsize=9, wrap=True)
    figure.savefig(folder / PICTURE, dpi=100)
