"""A real SmolVLA, small and untrained, moves the arm: bundle, engine, policy process, queue and driver together."""

import os
import signal
from pathlib import Path

import pytest

from agent.errors import BadInput
from agent.inference.importer import Wish, import_checkpoint
from tests.inference.checkpoints import smolvla
from tests.station.live import LiveStation, wait_for


@pytest.fixture
def station(short_dir: Path) -> LiveStation:
    """Started, with one policy in its library."""
    live = LiveStation(short_dir, policy={"replan_s": 0.1})
    checkpoint = smolvla(short_dir / "checkpoint")
    import_checkpoint(checkpoint, live.config.paths.policies, Wish(name="tiny"))
    return live


def test_a_smolvla_moves_the_arm_and_a_damaged_one_does_not(station: LiveStation) -> None:
    try:
        station.start_virtual("--seed", "1")
        station.start_agent()
        station.client.call("task.start", {"task": "touch the red disc", "policy": "tiny"}, timeout_s=120.0)
        status = wait_for(
            "chunks come", lambda: (s := station.status()) and s["policy"]["execution"]["chunks"] > 5 and s, 30.0
        )
        policy = status["policy"]
        assert policy["engine"] != "reference, here"
        assert policy["deviation"] <= 1.0
        assert policy["cameras"] == ["front", "wrist"]
        assert policy["failures"] == 0
        assert policy["execution"]["dropped"] == {}
        assert len(policy["hash"]) == 12
        assert "no starvation expected" in policy["verdict"]
        station.client.call("task.stop")
        station.wait_mode("hold")

        weights = station.config.paths.policies / "tiny" / "policy" / "model.safetensors"
        damaged = bytearray(weights.read_bytes())
        damaged[-5] ^= 1
        weights.write_bytes(damaged)
        pid = station.child_pid("policy")
        os.kill(pid, signal.SIGKILL)  # the loaded one is still whole
        wait_for("another policy process", lambda: (s := station.status()) and s["children"]["policy"]["pid"] != pid)
        with pytest.raises(BadInput, match=r"model\.safetensors"):
            station.client.call("task.start", {"task": "touch the red disc", "policy": "tiny"}, timeout_s=120.0)
        status = station.wait_mode("hold")
        assert "tiny" in status["policy"]["reason"]
        assert status["policy"]["state"] == "empty"
    finally:
        station.close()
