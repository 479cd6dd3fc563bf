"""What is measured, and how it is told."""

import os
import platform
import subprocess
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One load, measured."""

    stations: int
    telemetry_hz: float
    connect_s: float  # of the stations that came for this row
    messages_per_s: float  # published by the stations and delivered to the dashboard
    expected_per_s: float
    kbytes_per_s: float
    broker_cpu_pct: float  # of one core
    broker_mb: float
    simulator_cpu_pct: float
    simulator_mb: float
    telemetry_age_p99_ms: float | None
    answers: dict[str, float | int | None]

    def sentence(self) -> str:
        return (
            f"{self.stations} stations at {self.telemetry_hz:g} Hz: {self.messages_per_s:g} of {self.expected_per_s:g} "
            f"messages/s, broker {self.broker_cpu_pct:g}% of a core and {self.broker_mb:g} MB, "
            f"answers p99 {self.answers['p99_ms']} ms"
        )


def machine() -> dict[str, Any]:
    version = subprocess.run(["mosquitto", "-h"], capture_output=True, text=True, env={"PATH": "/usr/sbin:/usr/bin"})
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "mosquitto": version.stdout.split("\n", 1)[0].removeprefix("mosquitto version "),
        "python": platform.python_version(),
    }


def table(result: dict[str, Any]) -> Table:
    made = Table(title="One broker")
    cells = [_cells(row) for row in result["rows"]]
    for column in cells[0]:
        made.add_column(column, justify="right")
    for row in cells:
        made.add_row(*row.values())
    return made


def _cells(row: dict[str, Any]) -> dict[str, str]:
    answers = row["answers"]
    return {
        "stations": f"{row['stations']}",
        "telemetry": f"{row['telemetry_hz']:g} Hz",
        "messages/s": f"{row['messages_per_s']:,}",
        "KB/s": f"{row['kbytes_per_s']:,}",
        "broker CPU": f"{row['broker_cpu_pct']:g}%",
        "broker MB": f"{row['broker_mb']:g}",
        "ack p50": f"{answers['p50_ms']} ms",
        "ack p99": f"{answers['p99_ms']} ms",
        "ack max": f"{answers['max_ms']} ms",
        "lost": f"{answers['lost']} of {answers['commands']}",
        "telemetry age p99": f"{row['telemetry_age_p99_ms']} ms",
        "simulator CPU": f"{row['simulator_cpu_pct']:g}%",
    }
