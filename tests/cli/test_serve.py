"""Keys and a policy server, as a person makes and runs them."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.config import RemotePolicy
from agent.errors import BadInput, Exit
from agent.inference.bundle import Bundle
from agent.inference.engine import Observation
from agent.inference.importer import Wish, import_checkpoint
from agent.inference.keys import read_public, read_server, read_station, read_stations
from agent.inference.remote import RemoteEngine
from tests.cli.conftest import Cli

START_S = 60.0
"""Of a fresh interpreter on a busy host."""

END_S = 5.0
"""After SIGTERM; it takes a tenth of a second where nothing else runs."""


def test_keygen_makes_both_pairs_and_says_which_file_goes_where(cli: Cli, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    result = cli("policy", "keygen", keys, "--station", "kitchen")
    assert result.code == Exit.DONE
    assert sorted(str(path.relative_to(keys)) for path in keys.rglob("*.*")) == [
        "server.key", "server.pub", "stations/kitchen.key", "stations/kitchen.pub"
    ]  # fmt: skip
    assert f"{keys}/stations/kitchen.key as station.key" in result.out
    assert f"{keys}/server.pub as server.pub" in result.out
    assert f"{keys}/stations/kitchen.pub stays here" in result.out
    for name, mode in (("server.key", 0o600), ("stations/kitchen.key", 0o600), ("server.pub", 0o644)):
        assert stat.S_IMODE((keys / name).stat().st_mode) == mode
    assert "secret" not in (keys / "stations" / "kitchen.pub").read_text()
    server = read_server(keys)
    assert server.public == read_public(keys / "server.pub")
    assert server.secret.decode() not in repr(server)
    assert read_stations(keys) == ({read_public(keys / "stations" / "kitchen.pub"): "kitchen"}, [])


def test_keygen_adds_stations_and_overwrites_nothing(cli: Cli, tmp_path: Path) -> None:
    made = cli("policy", "keygen", tmp_path / "keys", "--json").json
    assert made["files"] == [str(tmp_path / "keys" / name) for name in ("server.key", "server.pub")]
    for name in ("kitchen", "garage"):
        assert len(cli("policy", "keygen", tmp_path / "keys", "--station", name, "--json").json["files"]) == 2
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for arguments in ([], ["--station", "kitchen"]):
        again = cli("policy", "keygen", tmp_path / "keys", *arguments)
        assert again.code == Exit.BAD_INPUT
        assert "is already there" in again.err
    (tmp_path / "keys" / "stations" / "garage.key").unlink()  # it was moved to its station
    assert cli("policy", "keygen", tmp_path / "keys", "--station", "garage").code == Exit.BAD_INPUT
    assert cli("policy", "keygen", tmp_path / "keys", "--station", "../garage").code == Exit.BAD_INPUT
    del before[tmp_path / "keys" / "stations" / "garage.key"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda path: path.unlink(), "Cannot read the key file"),
        (lambda path: path.write_text("hello\n"), "holds no public key"),
        (lambda path: path.write_text("public short\nsecret short\n"), "holds no public key"),
        (lambda path: path.write_text(path.read_text().split("secret")[0]), "holds no secret key"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "Cannot read the key file"),
        (lambda path: path.chmod(0o640), "others than its owner may read it"),
        (
            lambda path: path.write_text("public " + "0" * 40 + "\nsecret" + path.read_text().split("secret")[1]),
            "does not belong to the secret one",
        ),
    ],
)
def test_a_key_file_that_is_not_one_is_refused_by_name(cli: Cli, tmp_path: Path, change: Any, sentence: str) -> None:
    cli("policy", "keygen", tmp_path, "--station", "kitchen")
    own = tmp_path / "station.key"
    (tmp_path / "stations" / "kitchen.key").rename(own)
    read_station(tmp_path)
    change(own)
    with pytest.raises(BadInput, match=sentence) as error:
        read_station(tmp_path)
    assert str(own) in error.value.message


def test_a_broken_file_among_the_stations_keeps_nobody_else_out(cli: Cli, tmp_path: Path) -> None:
    cli("policy", "keygen", tmp_path, "--station", "kitchen")
    (tmp_path / "stations" / "garage.pub").write_text("nothing\n")
    (tmp_path / "stations" / "No Name.pub").write_text(f"public {'0' * 40}\n")
    known, problems = read_stations(tmp_path)
    assert list(known.values()) == ["kitchen"]
    assert len(problems) == 2


def test_serve_explains_itself(cli: Cli) -> None:
    result = cli("policy", "serve", "--help")
    assert result.code == Exit.DONE
    assert "Example: so-agent policy serve --bind tcp://" in result.out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--keys": "nowhere"}, "Cannot read the key file"),
        ({"--keys": "lonely"}, "holds no station's public key"),
        ({"--policies": "nowhere"}, "is no folder of policies"),
        ({"--engine": "steam"}, "There is no engine steam"),
        ({"--bind": "0.0.0.0:5555"}, "is no address to listen on"),
        ({"--bind": "tcp://127.0.0.1:99999"}, "is no address to listen on"),
        ({"--bind": "tcp://192.0.2.1:5555"}, "Cannot listen on"),  # of nobody, by RFC 5737
    ],
)
def test_serve_says_what_it_cannot_start_with(cli: Cli, tmp_path: Path, change: dict[str, str], sentence: str) -> None:
    cli("policy", "keygen", tmp_path / "keys", "--station", "kitchen")
    cli("policy", "keygen", tmp_path / "lonely")
    options = {"--keys": "keys", "--policies": ".", "--bind": "tcp://127.0.0.1:0", "--engine": "auto"} | change
    paths = ("--keys", "--policies")
    arguments = [
        word for name, value in options.items() for word in (name, tmp_path / value if name in paths else value)
    ]
    result = cli("policy", "serve", *arguments)
    assert result.code == Exit.BAD_INPUT
    assert sentence in result.err


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from tests.inference.checkpoints import smolvla

    checkpoint = smolvla(tmp_path_factory.mktemp("checkpoints") / "smolvla")
    return import_checkpoint(checkpoint, tmp_path_factory.mktemp("policies"), Wish(name="tiny"))


class Served:
    """`so-agent policy serve` as a process, with its log."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "agent.cli", "policy", "serve", *map(str, arguments)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.log: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.log.append(json.loads(line) if line.startswith("{") else {"event": line})
                self._changed.notify_all()

    def until(self, event: str) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [entry for entry in self.log if entry["event"] == event]

        with self._changed:
            assert self._changed.wait_for(found, START_S), self.log
            return found()[-1]

    def end(self, number: signal.Signals) -> tuple[int, float]:
        """Its exit status, and how long it took."""
        begun = time.monotonic()
        self.process.send_signal(number)
        status = self.process.wait(START_S)
        self._reader.join()
        return status, time.monotonic() - begun


@contextmanager
def served(*arguments: object) -> Iterator[Served]:
    it = Served(*arguments)
    try:
        yield it
    finally:
        if it.process.poll() is None:
            it.process.kill()
            it.end(signal.SIGKILL)


@pytest.mark.slow
def test_a_station_uses_a_policy_that_is_served_elsewhere(cli: Cli, tmp_path: Path, bundle: Bundle) -> None:
    keys, own = tmp_path / "keys", tmp_path / "station"
    cli("policy", "keygen", keys, "--station", "kitchen")
    own.mkdir()
    (keys / "stations" / "kitchen.key").rename(own / "station.key")
    (own / "server.pub").write_bytes((keys / "server.pub").read_bytes())
    where = ["--bind", "tcp://127.0.0.1:0", "--keys", keys, "--policies", bundle.folder.parent]
    with served(*where, "--engine", "exact") as server:
        ready = server.until("ready")
        assert ready["stations"] == ["kitchen"]
        assert ready["policies"] == ["tiny"]
        settings = RemotePolicy(address=ready["address"], keys=own, timeout_s=START_S)
        engine = RemoteEngine(settings, bundle)
        picture = np.zeros((48, 64, 3), np.uint8)
        images = dict.fromkeys(bundle.manifest.cameras.values(), picture)
        actions = engine.predict(Observation((0, 0, 0, 0, 0, 0), images, "reach the red disc"))
        assert actions.shape == (50, 6)
        assert engine.traits.name == "exact"
        assert engine.traits.place == ready["address"]
        assert server.until("policy loaded")["policy"] == "tiny"
        engine.close()
        status, took_s = server.end(signal.SIGTERM)
    assert status == 0
    assert took_s < END_S
    assert server.log[-1]["event"] == "ended"


def test_ctrl_c_ends_a_server_that_nobody_asked(cli: Cli, tmp_path: Path) -> None:
    cli("policy", "keygen", tmp_path / "keys", "--station", "kitchen")
    with served("--bind", "tcp://127.0.0.1:0", "--keys", tmp_path / "keys", "--policies", tmp_path) as server:
        server.until("ready")
        status, took_s = server.end(signal.SIGINT)
    assert status == 0
    assert took_s < END_S
