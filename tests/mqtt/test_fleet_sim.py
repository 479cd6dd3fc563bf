"""The fleet simulator runs: some stations over mutual TLS, a broker that is killed, and a table at the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mqtt.broker import needs_mosquitto

ROOT = Path(__file__).resolve().parents[2]


@needs_mosquitto
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_small_fleet_is_measured(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "benchmarks.fleet_sim", "--quick", "--stations", "16", "--seconds", "2"]
    files = ["--results", tmp_path / "fleet.json", "--figure", tmp_path / "fleet.png"]
    result = subprocess.run([*program, *files], cwd=ROOT, capture_output=True, text=True, timeout=220)
    assert result.returncode == 0, result.stdout + result.stderr
    measured = json.loads((tmp_path / "fleet.json").read_text())
    assert [row["stations"] for row in measured["rows"]] == [16, 16]
    for row in measured["rows"]:
        assert row["answers"]["lost"] == 0, row
        assert row["messages_per_s"] > 0
    assert measured["reconnect"]["back_100_pct_s"] > 0
    assert (tmp_path / "fleet.png").stat().st_size > 10_000
    assert "One broker" in result.stdout
