"""The curves of learning as a picture."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt


def plot_pretraining(file: Path, curve: list[dict[str, float]]) -> None:
    """Loss, and what the tower still gets wrong on held-out renders."""
    steps = [point["step"] for point in curve]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(steps, [point["loss"] for point in curve])
    left.set(xlabel="step", ylabel="loss", yscale="log", title="Vision tower on renders")
    for name, label in (
        ("bearing_deg", "bearing of an object, degrees"),
        ("distance_cm", "distance of an object, cm"),
        ("joints_deg", "joints, degrees"),
    ):
        right.plot(steps, [point[name] for point in curve], label=label)
    right.set(xlabel="step", ylabel="error, RMS", yscale="log", title="Held-out renders")
    right.legend()
    _save(figure, file)


def plot_training(file: Path, curve: list[dict[str, float]], successes: list[dict[str, float]]) -> None:
    """Loss, and success on unseen starts in the simulator."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot([point["step"] for point in curve], _smooth([point["loss"] for point in curve]))
    left.set(xlabel="step", ylabel="flow-matching loss", yscale="log", title="Policy on recorded episodes")
    steps = [point["step"] for point in successes]
    right.plot(steps, [100 * point["success"] for point in successes], "o-", label="the named disc")
    right.plot(steps, [100 * point["stays"] for point in successes], "^:", label="and there after 6 s")
    right.plot(steps, [100 * point["other"] for point in successes], "s--", label="the other disc")
    right.set(xlabel="step", ylabel="reached within 2 cm, %", ylim=(-3, 103), title="Unseen starts, simulator")
    right.legend()
    _save(figure, file)


def _smooth(values: list[float], window: int = 5) -> list[float]:
    return [sum(values[max(0, at - window + 1) : at + 1]) / min(window, at + 1) for at in range(len(values))]


def _save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
