"""What every federated test needs: a tiny policy, a few drawn episodes, a served fleet, and stations in it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports Hugging Face's client

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fl.bench import PATIENT_HASH, Member, Server
from tests.station.live import free_ports


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle; not to be changed."""
    from agent.inference.importer import Wish, import_checkpoint
    from tests.inference.checkpoints import smolvla

    checkpoint = smolvla(tmp_path_factory.mktemp("checkpoints") / "smolvla", chunk_size=8)
    return import_checkpoint(checkpoint, tmp_path_factory.mktemp("policies"), Wish(name="tiny")).folder


@pytest.fixture(scope="session")
def drawn_episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dataset with five short episodes; not to be changed."""
    from agent.fl.synthetic import drawn

    return drawn(tmp_path_factory.mktemp("drawn"), episodes=5)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    """A fleet for tests that leave it as they found it: starting one takes ten seconds."""
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))
    server = Server(folder, free_ports(1)[0])
    server.start()
    try:
        asyncio.run(server.ready())
        yield server
    finally:
        server.stop()
        print(f"--- {server.log.read_text()[-4000:]}\n--- superlink.log\n{server.superlink_log()}")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def server(short_dir: Path, tiny_policy: Path) -> AsyncIterator[Server]:
    """A fleet for one test alone, with the tiny policy."""
    server = Server(short_dir, free_ports(1)[0])
    shutil.copytree(tiny_policy, server.fleet.policies / "tiny")
    server.start()
    try:
        await server.ready()
        yield server
    finally:
        server.stop()


@pytest.fixture
async def member(short_dir: Path, tiny_policy: Path, drawn_episodes: Path) -> AsyncIterator[Callable[..., Member]]:
    """Makes stations that are equipped, and ends them: enrolled and registered where a server is given."""
    made: list[Member] = []

    def make(name: str, server: Server | None = None, **federation: Any) -> Member:
        each = Member(short_dir, name, **({"apps": (PATIENT_HASH,), "keep_warm": False} | federation))
        each.equip(tiny_policy, drawn_episodes)
        if server is not None:
            server.fleet.add_station(name, each.enroll(server))
        made.append(each)
        return each

    yield make
    await asyncio.gather(*(each.stop() for each in made))
    for each in made:  # pytest shows it where a test failed
        print(f"--- supernode.log of {each.name}\n{each.log()}")
