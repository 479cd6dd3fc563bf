"""Three stations, each an agent with a virtual arm and its own episodes; a SuperLink with TLS and keys; three rounds.

All that one of them sends is looked at, byte by byte."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.fl.adapter import open_adapter
from agent.inference.library import Library
from agent.robot.recording.index import DatasetIndex
from tests.fl.bench import EAGER, ROOT, Server, until
from tests.fl.wire import recording
from tests.station.live import LiveStation, free_ports

NAMES = ("kitchen", "attic", "workshop")
ROUNDS_S = 900.0
"""Of a run, on a very busy machine; on two quiet cores it takes two or three minutes."""

KINDS = {"Message", "RecordDict", "ArrayRecord", "MetricRecord", "Array", "ArrayChunk"}


class FleetStation(LiveStation):
    """A live station that may learn from one dataset."""

    def __init__(self, folder: Path, name: str, policy: Path, dataset: Path) -> None:
        super().__init__(folder / name, cameras=False, station=name, federation=EAGER)
        self.name = name
        paths = self.config.paths
        shutil.copytree(policy, paths.policies / policy.name)
        shutil.copytree(dataset, paths.datasets / "drawn")

    def join(self, server: Server, address: str) -> None:
        made = self.client.call("fl.enroll", {"superlink": address, "ca": server.fleet.authority.read_text()})
        server.fleet.add_station(self.name, made["public_key"])
        self.client.call("fl.consent", {"dataset": "drawn", "on": True})

    def federation(self) -> dict[str, Any]:
        return self.client.call("fl.status")

    def log_tail(self) -> str:
        path = self.config.paths.federation / "supernode.log"
        return path.read_text()[-3000:] if path.exists() else ""


@pytest.fixture
def stations(short_dir: Path, tiny_policy: Path, drawn_episodes: Path) -> Iterator[list[FleetStation]]:
    """Started one after the other: a person would, and two cores could not do it otherwise."""
    made: list[FleetStation] = []
    try:
        for name in NAMES:
            station = FleetStation(short_dir, name, tiny_policy, drawn_episodes)
            made.append(station)
            if name == NAMES[0]:
                paths = station.config.paths
                Library(paths.policies, paths.policy_in_use).use("tiny")
            station.start_virtual("--no-cameras")
            station.start_agent()
        yield made
    finally:
        for station in made:
            print(f"--- supernode.log of {station.name}\n{station.log_tail()}")
            station.close()


@pytest.mark.deployment
@pytest.mark.slow
@pytest.mark.timeout(1500)
async def test_three_stations_make_one_adapter_in_three_rounds(server: Server, stations: list[FleetStation]) -> None:
    first, *others = stations
    gate = free_ports(1)[0]
    with recording(server, gate) as recorded:
        for station in stations:
            station.join(server, f"127.0.0.1:{gate}" if station is first else server.address)
        for station in stations:
            await until(f"{station.name} is online", lambda each=station: each.federation()["state"] == "online")
        await server.begin(
            "first", min_available_nodes=3, fraction_evaluate=0.0, node_timeout_s=300.0, round_timeout_s=300.0
        )
        await until("it trains", lambda: (first.status() or {}).get("mode") == "training")
        assert await server.over("first", ROUNDS_S) == "completed"
        done = server.rounds("first")
        assert [note["round"] for note in done] == [0, 1, 2, 3]
        assert [note["used"] for note in done[1:]] == [3, 3, 3]
        final = open_adapter(Path(done[-1]["adapter"]))
        for station in stations:
            kept = open_adapter(station.config.paths.federation / "candidates" / "first")
            assert kept.manifest.round == 3
            assert kept.arrays().keys() == final.arrays().keys()
        for station in others:
            station.close()  # they would try it, too
        await until("the candidate is tried", lambda: first.federation()["promotion"]["candidates"])
        tried = first.federation()["promotion"]["candidates"][-1]
        assert tried["rows"] > 0
        assert tried["after"] <= tried["before"] * 1.02
        assert tried["outcome"] == "promoted"
        assert policies(first) == {"first": True, "tiny": False}
        assert (first.status() or {})["mode"] in ("idle", "training")  # and no arm ever had anything to complain of

    print(f"seconds of the rounds: {[note['seconds'] for note in done[1:]]}\n{recorded.table()}")
    replies = 3
    arrays = sum(value.size * 2 for value in final.arrays().values())
    sent = recorded.objects()
    assert {kind for kind, _ in sent} == KINDS
    numbers = sum(len(content) for kind, content in sent if kind == "ArrayChunk")
    # numpy's header of 128 bytes an array comes on top of the numbers; a frame of one camera has 900,000.
    assert 0 <= numbers - replies * arrays <= replies * 128 * len(final.arrays())
    dataset = first.config.paths.datasets / "drawn"
    texts = {episode.task for episode in DatasetIndex(dataset).list()}
    for secret in (first.name, "drawn", str(first.folder), "front", "wrist", "observation", *texts):
        assert secret.encode() not in recorded.everything, secret


def policies(station: FleetStation) -> dict[str, bool]:
    """Names, and whether tasks run them, as `so-agent policy list` says."""
    command = [sys.executable, "-m", "agent.cli", "policy", "list", "-c", str(station.file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return {each["policy"]: each["in_use"] for each in json.loads(done.stdout)}
