"""A whole station, agent and virtual arm, in a fleet: it trains while nobody needs the arm, and makes no one wait."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fl.bench import PATIENT_HASH, ROOT, Server, notes, until
from tests.station.live import LiveStation, wait_for

pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(900)]

TICK_S = 1.0
"""To the first tick of a teleoperation, from the request, on a machine that is busy with tests."""


@pytest.fixture
def live(short_dir: Path, drawn_episodes: Path) -> Iterator[LiveStation]:
    settings = {
        "idle_min": 0.0,
        "min_free_memory_gb": 0.2,
        "min_free_disk_gb": 0.2,
        "apps": [PATIENT_HASH],
        "keep_warm": False,
    }
    live = LiveStation(short_dir / "station", cameras=False, federation=settings)
    shutil.copytree(drawn_episodes, live.config.paths.datasets / "drawn")
    try:
        live.start_virtual("--no-cameras")
        live.start_agent()
        yield live
    finally:
        live.close()


def so_agent(live: LiveStation, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "agent.cli", *words, "-c", str(live.file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


async def test_a_station_trains_while_it_is_idle_and_makes_way_for_its_operator(
    shared_server: Server, live: LiveStation
) -> None:
    ca = str(shared_server.fleet.authority)
    made = so_agent(live, "fl", "enroll", "--superlink", shared_server.address, "--ca", ca)
    shared_server.fleet.add_station("live", made["public_key"])
    assert "no dataset may be learnt from" in so_agent(live, "fl", "status")["reason"]
    assert so_agent(live, "fl", "consent", "drawn")["consent"]["drawn"]
    await until("the station is online", lambda: live.client.call("fl.status")["state"] == "online")
    output = await shared_server.be_patient("live", num_server_rounds=1, seconds=120.0)
    await until("the mode is training", lambda: (live.status() or {}).get("mode") == "training")
    await until("it has begun", lambda: "Start `flwr-clientapp`" in live_log(live))

    began_s = time.monotonic()
    live.client.call("teleop.start")
    wait_for("the arm moves", lambda: (live.status() or {})["arm"]["drive"] in ("align", "follow"))
    assert time.monotonic() - began_s < TICK_S
    status = live.status() or {}
    assert status["mode"] in ("aligning", "teleop")
    assert status["federation"]["state"] in ("working", "finishing", "off")
    await until("the server has its answer", lambda: notes(output))
    assert notes(output)[0]["errors"] == []
    assert notes(output)[0]["replies"][0]["preempted"] == 1.0
    await until("the SuperNode is gone", lambda: live.client.call("fl.status")["state"] == "off", 120)
    events = live.client.call("events")["events"]
    assert any(each["kind"] == "mode" and "training" in json.dumps(each) for each in events)


def live_log(live: LiveStation) -> str:
    path = live.config.paths.federation / "supernode.log"
    return path.read_text() if path.exists() else ""
