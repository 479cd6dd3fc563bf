"""`check-config` on what the page and the broker need: each file by name, each surprise before it happens."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.api.certificates import require_pair
from agent.cli.finding import Finding, Level
from agent.cli.network import check_network
from agent.config import StationConfig
from agent.errors import BadInput
from tests.mqtt.authority import Authority
from tests.station.live import free_ports

EVERYWHERE = "0.0.0.0"  # noqa: S104 - what a phone needs

type Check = Callable[..., list[Finding]]


@pytest.fixture
def check(make_config: Callable[..., StationConfig]) -> Check:
    [port] = free_ports(1)

    def check(http: dict[str, Any] | None = None, **sections: Any) -> list[Finding]:
        return check_network(make_config(http={"port": port} | http if http else None, **sections))

    return check


@pytest.fixture
def authority(short_dir: Path) -> Authority:
    made = Authority(short_dir / "tls")
    made.broker("arm.local", "192.0.2.7")
    made.client("test")
    made.expired("yesterday")
    return made


def page(authority: Authority, name: str = "broker", **settings: Any) -> dict[str, Any]:
    tls = {kind: path for kind, path in authority.settings(name).items() if kind != "ca"}
    return {"host": EVERYWHERE, "names": ["arm.local"], "tls": tls} | settings


def test_what_is_switched_off_is_not_spoken_of(check: Check) -> None:
    assert check() == []


def test_a_page_says_where_it_is(check: Check, authority: Authority) -> None:
    [local] = check(http={"host": "localhost"})
    assert local.level is Level.OK
    assert re.fullmatch(r"http://localhost:\d+, for this machine only", local.found)
    [found] = check(http=page(authority, names=["arm.local", "192.0.2.7"]))
    assert found.level is Level.OK
    assert "https://arm.local:" in found.found


def test_a_port_that_another_station_has_is_named_and_the_stations_own_is_not(
    make_config: Callable[..., StationConfig],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        config = make_config(http={"port": other.getsockname()[1]})
        assert ("http.port", Level.ERROR) in [(found.name, found.level) for found in check_network(config)]
        config.paths.run.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as agent:  # the station itself runs: the port is its page's
            agent.bind(str(config.paths.agent_socket))
            agent.listen()
            assert [found.level for found in check_network(config)] == [Level.OK]


@pytest.mark.parametrize("missing", ["cert", "key"])
def test_a_certificate_file_that_is_missing_is_named(check: Check, authority: Authority, missing: str) -> None:
    settings = page(authority)
    settings["tls"] |= {missing: "/nowhere/file.pem"}
    [found] = check(http=settings)
    assert (found.name, found.level) == ("http.tls", Level.ERROR)
    assert "/nowhere/file.pem cannot be read: No such file" in found.found


def test_files_that_do_not_belong_together_are_named(check: Check, authority: Authority, short_dir: Path) -> None:
    settings = page(authority)
    settings["tls"]["key"] = str(authority.folder / "test.key")
    [found] = check(http=settings)
    assert "test.key is not the private key of" in found.found
    (short_dir / "text.pem").write_text("hello")
    with pytest.raises(BadInput, match="PEM files"):
        require_pair(short_dir / "text.pem", authority.folder / "test.key")


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(authority: Authority) -> None:
    from cryptography.hazmat.primitives import serialization

    path = authority.folder / "test.key"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"correct horse")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    with pytest.raises(BadInput, match="without a password"):
        require_pair(authority.folder / "test.crt", path)


def test_a_page_that_nobody_could_open_is_a_warning(check: Check, authority: Authority) -> None:
    assert [found.name for found in check(http=page(authority, names=[]))] == ["http.names"]
    [other] = check(http=page(authority, names=["arm.local", "kitchen.local"]))
    assert other.level is Level.WARNING
    assert "is not for kitchen.local, and browsers will warn" in other.found
    [old] = check(http=page(authority, "yesterday"))
    assert old.level is Level.WARNING
    assert "has expired on" in old.found


def test_the_files_of_the_broker_are_looked_at_too(check: Check, authority: Authority, short_dir: Path) -> None:
    broker = {"host": "broker.example", "tls": authority.settings("test")}
    assert [found.level for found in check(mqtt=broker)] == [Level.OK]
    [found] = check(mqtt=broker | {"password_file": str(short_dir / "none")})
    assert f"{short_dir}/none cannot be read" in found.found
    (short_dir / "empty").touch()
    [found] = check(mqtt=broker | {"tls": {"ca": str(short_dir / "empty")}})
    assert (found.level, "holds no certificate" in found.found) == (Level.ERROR, True)


def test_a_secret_that_only_the_service_may_read_is_no_error(
    check: Check, authority: Authority, short_dir: Path
) -> None:
    if os.geteuid() == 0:
        short_dir.chmod(0o711)
        authority.folder.chmod(0o711)
        for file in authority.folder.iterdir():
            file.chmod(0o600 if file.suffix == ".key" else 0o644)
        os.seteuid(65534)
    else:
        (authority.folder / "broker.key").chmod(0)
    try:
        [found] = check(http=page(authority))
    finally:
        os.seteuid(os.getuid())
    assert found.level is Level.WARNING
    assert "may not be read by this account" in found.found
