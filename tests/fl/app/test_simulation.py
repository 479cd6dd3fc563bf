"""The whole of it: `flwr run` with simulated stations, as a person starts it."""

import json
from pathlib import Path

import pytest

from agent.fl.adapter import check_fits, open_adapter, policy_from
from agent.inference.bundle import Bundle
from benchmarks.federation_simulation import run, superlink

STATIONS = 3
RUN_S = 500.0  # half a minute on a machine with nothing else to do


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_flwr_run_simulates_stations_that_learn_together(
    tmp_path: Path,
    base: Bundle,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = {
        "name": "simulated", "policy": str(base.folder), "dataset": str(dataset), "output": str(tmp_path / "fleet"),
        "num-server-rounds": 2, "local-steps": 10, "batch-size": 4, "learning-rate": 1e-2, "adapter-rank": 4,
        "held-out": 0.5, "partition": "task", "min-available-nodes": STATIONS,
    }  # fmt: skip
    with superlink(tmp_path / "work") as environment:
        assert run(tmp_path / "work", environment, STATIONS, settings, RUN_S)
    assert "Installing" not in capsys.readouterr().out  # of packages: Flower's own way, and 5.6 GB for each run
    folder = tmp_path / "fleet" / "simulated"
    rounds = json.loads((folder / "curve.json").read_text())
    assert [(each["round"], each["used"]) for each in rounds] == [(0, 0), (1, STATIONS), (2, STATIONS)]
    losses = [each["held_out_loss"] for each in rounds]
    assert losses[2] < losses[0]
    assert (folder / "curve.png").stat().st_size > 10_000
    last = open_adapter(folder / "rounds" / "000002" / "adapter")
    check_fits(last, base)
    assert policy_from(last, base, tmp_path / "policies", "together").manifest.chunk_size == base.manifest.chunk_size
