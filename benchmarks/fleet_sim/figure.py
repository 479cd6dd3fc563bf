"""What one broker carries, as a picture."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def draw(result: dict[str, Any], path: Path) -> None:
    """Load on the left, the return after a restart on the right."""
    rows = sorted(result["rows"], key=lambda row: row["messages_per_s"])
    rates = [row["messages_per_s"] for row in rows]
    stations = result["settings"]["stations"]
    figure, axes = plt.subplot_mosaic([["load", "back"], ["answers", "back"]], figsize=(11, 5), layout="constrained")
    load, answers, back = axes["load"], axes["answers"], axes["back"]

    simulator = [row["simulator_cpu_pct"] for row in rows]
    load.plot(rates, [row["broker_cpu_pct"] for row in rows], "o-", color="#1f6feb", label="the broker")
    load.plot(rates, simulator, "^:", color="grey", label="the simulated stations")
    load.set_ylabel("CPU, % of one core")
    load.set_ylim(0, 1.1 * max(100, *simulator))
    load.legend(loc="upper left", fontsize=8)
    load.set_title("Load")

    answers.plot(rates, [row["answers"]["p99_ms"] for row in rows], "s-", color="#d1242f", label="p99")
    answers.plot(rates, [row["answers"]["p50_ms"] for row in rows], "s:", color="#d1242f", alpha=0.6, label="p50")
    answers.set_ylabel("command to answer, ms")
    answers.set_xlabel("messages a second that stations publish")
    for row in rows:
        text = f"{row['stations']} x {row['telemetry_hz']:g} Hz"
        place = (row["messages_per_s"], row["answers"]["p99_ms"])
        answers.annotate(text, place, (-2, 6), textcoords="offset points", fontsize=7, rotation=50)
    answers.legend(loc="upper left", fontsize=8)
    for axis in (load, answers):
        axis.set_xlim(0, max(rates) * 1.12)
        axis.grid(alpha=0.3)
    answers.set_ylim(0, 1.35 * max(row["answers"]["p99_ms"] or 0 for row in rows))

    curve = result["reconnect"]["curve"]
    back.step([at for at, _ in curve], [online for _, online in curve], where="post", color="#1a7f37")
    back.axhline(stations, color="grey", linewidth=0.8, linestyle=":")
    back.set_xlabel("seconds after the broker is back")
    back.set_ylabel("stations online")
    back.set_xlim(0, None)
    back.set_ylim(0, stations * 1.05)
    back.set_title(f"Broker killed, away for {result['reconnect']['broker_away_s']:g} s")
    back.grid(alpha=0.3)

    about = result["machine"]
    transport = "plain TCP" if result["settings"]["plain"] else "mutual TLS, ACL"
    figure.suptitle(
        f"mosquitto {about['mosquitto']}, {stations} simulated stations, {transport}; all on {about['cores']} cores",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
