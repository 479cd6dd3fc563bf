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
    figure, (load, back) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")

    load.plot(rates, [row["broker_cpu_pct"] for row in rows], "o-", color="#1f6feb", label="broker, % of one core")
    load.set_xlabel("messages a second that stations publish")
    load.set_ylabel("broker CPU, % of one core", color="#1f6feb")
    load.set_ylim(0, 105)
    load.set_xlim(0, None)
    for row in rows:
        text = f"{row['stations']} x {row['telemetry_hz']:g} Hz"
        load.annotate(
            text, (row["messages_per_s"], row["broker_cpu_pct"]), (4, 8), textcoords="offset points", fontsize=8
        )
    answers = load.twinx()
    answers.plot(rates, [row["answers"]["p99_ms"] for row in rows], "s--", color="#d1242f")
    answers.set_ylabel("command to answer, p99, ms", color="#d1242f")
    answers.set_ylim(0, None)
    load.set_title("Load")
    load.grid(alpha=0.3)

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
