"""The broker configuration that is shipped: who gets in, and who may say what."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from aiomqtt import MqttError, TLSParameters

from agent.api.mqtt.surface import context
from agent.config import MqttTls, StationConfig
from tests.mqtt.authority import SHIPPED, Authority, shipped_settings
from tests.mqtt.broker import Broker, connected, running
from tests.mqtt.conftest import Bench, surfaced
from tests.mqtt.daemon import FakeDaemon, command, payload

ROOT = "so/v1/test"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("ca"))
    made.broker("localhost", "127.0.0.1")
    made.client("test", "other", "fleet", "dashboard", "homeassistant")
    return made


@pytest.fixture
def authority(short_dir: Path, certificates: Authority) -> Authority:
    """One of this test alone, with the same certificates."""
    shutil.copytree(certificates.folder, short_dir / "ca")
    return Authority(short_dir / "ca")


def _readable(folder: Path) -> None:
    """Mosquitto gives up root before it reads its files."""
    if os.getuid() == 0:
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)


@pytest.fixture
def fleet(short_dir: Path, authority: Authority) -> Iterator[Broker]:
    _readable(short_dir)
    with running(Broker(short_dir, *shipped_settings(authority), allow_anonymous=False)) as started:
        yield started


@pytest.fixture
async def station(
    fleet: Broker, authority: Authority, make_config: Callable[..., StationConfig]
) -> AsyncIterator[Bench]:
    config = make_config(mqtt={"host": "localhost", "port": fleet.port, "tls": authority.settings("test")})
    async with surfaced(config, FakeDaemon()) as made:
        await asyncio.wait_for(made.surface.connected.wait(), 10)
        yield made


async def may_write(fleet: Broker, authority: Authority, who: str, topic: str) -> bool:
    """Whether a message of `who` reaches the fleet's desk. A refused publish raises nothing, so the proof is what
    arrives before the next one on a topic that is allowed."""
    async with contextlib.AsyncExitStack() as stack:
        desk = await stack.enter_async_context(
            connected(fleet.port, "so/v1/#", "homeassistant/#", tls=authority.tls(_other(who)), host="localhost")
        )
        writer = await stack.enter_async_context(connected(fleet.port, tls=authority.tls(who), host="localhost"))
        await writer.client.publish(topic, b'"probe"', qos=1)
        allowed = f"so/v1/{who}/event"
        await writer.client.publish(allowed, b'"after"', qos=1)
        await desk.wait(allowed, lambda value: value == "after")
        return any(message.payload == b'"probe"' for message in desk.on(topic))


def _other(who: str) -> str:
    return "homeassistant" if who == "fleet" else "fleet"


@pytest.mark.parametrize(
    ("who", "topic", "allowed"),
    [
        ("other", "so/v1/other/state", True),
        ("other", "so/v1/other/ack", True),
        ("other", "so/v1/other/ack/desk", True),
        ("other", "so/v1/other/cmd/hold", False),  # not even its own commands
        ("other", "so/v1/test/cmd/hold", False),
        ("other", "so/v1/test/state", False),
        ("other", "so/v1/test/ack/desk", False),
        ("fleet", "so/v1/test/cmd/task.start", True),
        ("fleet", "so/v1/test/state", False),
        ("dashboard", "so/v1/test/cmd/hold", False),
        ("homeassistant", "so/v1/test/cmd/hold", True),
        ("homeassistant", "so/v1/test/cmd/record", True),
        ("homeassistant", "so/v1/test/cmd/task.start", False),
        ("homeassistant", "so/v1/test/cmd/park", False),
    ],
)
async def test_who_may_write_what(fleet: Broker, authority: Authority, who: str, topic: str, allowed: bool) -> None:
    assert await may_write(fleet, authority, who, topic) is allowed


async def test_a_station_reads_its_own_commands_alone(fleet: Broker, authority: Authority) -> None:
    topics = ["so/v1/other/cmd/+", "so/v1/test/cmd/+", "so/v1/test/#", "#"]
    async with (
        connected(fleet.port, *topics, tls=authority.tls("other"), host="localhost") as thief,
        connected(fleet.port, tls=authority.tls("fleet"), host="localhost") as desk,
    ):
        for station in ("test", "other"):
            await desk.client.publish(f"so/v1/{station}/cmd/hold", payload(command()), qos=1)
        await thief.wait("so/v1/other/cmd/hold")
        assert not thief.on("so/v1/test/cmd/hold")


async def test_the_whole_way_over_mutual_tls(station: Bench, fleet: Broker, authority: Authority) -> None:
    async with connected(fleet.port, "so/v1/#", tls=authority.tls("fleet"), host="localhost") as desk:
        await desk.wait(f"{ROOT}/state", lambda state: state["mode"] == "idle")
        made = command()
        await desk.client.publish(f"{ROOT}/cmd/hold", payload(made), qos=1)
        answer = await desk.wait(f"{ROOT}/ack", lambda ack: ack["id"] == made["id"])
    assert answer["status"] == "done"


async def test_nobody_throws_a_station_out_by_taking_its_client_id(
    station: Bench, fleet: Broker, authority: Authority
) -> None:
    async with connected(fleet.port, tls=authority.tls("other"), host="localhost", identifier="test"):
        async with connected(fleet.port, f"{ROOT}/#", tls=authority.tls("fleet"), host="localhost") as desk:
            made = command()
            await desk.client.publish(f"{ROOT}/cmd/hold", payload(made), qos=1)
            await desk.wait(f"{ROOT}/ack", lambda ack: ack["id"] == made["id"])
            assert not [message for message in desk.on(f"{ROOT}/online") if b'"online":false' in message.payload]
        assert station.surface.connected.is_set()


async def _gets_in(fleet: Broker, tls: TLSParameters | None, timeout_s: float = 2.0) -> bool:
    try:
        async with connected(fleet.port, tls=tls, host="localhost", timeout=timeout_s):
            return True
    except MqttError:
        return False


async def test_who_has_no_certificate_of_this_authority_stays_out(
    fleet: Broker, authority: Authority, short_dir: Path
) -> None:
    stranger = Authority(short_dir / "stranger")
    stranger.client("test")
    authority.expired("yesterday")
    shutil.copy(authority.folder / "ca.crt", stranger.folder / "ca.crt")
    assert await _gets_in(fleet, authority.tls("test"), timeout_s=20.0)
    assert not await _gets_in(fleet, stranger.tls("test"))
    assert not await _gets_in(fleet, authority.tls("yesterday"))
    assert not await _gets_in(fleet, TLSParameters(ca_certs=str(authority.folder / "ca.crt")))
    assert not await _gets_in(fleet, None)


@pytest.mark.parametrize(
    "case", ["another authority's broker", "a broker of another name", "no certificate", "no file"]
)
async def test_a_station_says_why_it_does_not_connect_and_goes_on_trying(
    case: str,
    fleet: Broker,
    authority: Authority,
    short_dir: Path,
    make_config: Callable[..., StationConfig],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.api.mqtt.surface.ANSWER_S", 2.0)
    tls, said = authority.settings("test"), ""
    match case:
        case "another authority's broker":
            stranger = Authority(short_dir / "stranger")
            tls, said = tls | {"ca": str(stranger.folder / "ca.crt")}, "certificate verify failed"
        case "a broker of another name":
            shutil.move(authority.folder / "broker.crt", authority.folder / "old.crt")
            (authority.folder / "broker.key").unlink()
            authority.broker("broker.example")
            said = "certificate is not valid for"
        case "no certificate":
            tls, said = {"ca": tls["ca"]}, "does it accept this station's certificate?"
        case "no file":
            tls, said = tls | {"cert": str(short_dir / "none.crt")}, "none.crt cannot be read: No such file"
    if case == "a broker of another name":
        fleet.stop()
        _readable(short_dir)
        fleet.start()
    config = make_config(mqtt={"host": "localhost", "port": fleet.port, "tls": tls})
    async with surfaced(config, FakeDaemon()) as bench:
        heard = ""
        async with asyncio.timeout(20):
            while "not connected to the broker" not in heard:
                await asyncio.sleep(0.05)
                heard += capsys.readouterr().out
        assert said in heard
        assert not bench.surface.connected.is_set()
        assert not bench.task.done()


async def test_a_station_under_another_name_is_told_that_nobody_hears_it(
    fleet: Broker,
    authority: Authority,
    make_config: Callable[..., StationConfig],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker refuses its messages, and says so to nobody."""
    monkeypatch.setattr("agent.api.mqtt.session.ECHO_S", 0.5)
    config = make_config(mqtt={"host": "localhost", "port": fleet.port, "tls": authority.settings("other")})
    heard = ""
    async with surfaced(config, FakeDaemon()), asyncio.timeout(20):
        while "the broker drops what this station says" not in heard:
            await asyncio.sleep(0.05)
            heard += capsys.readouterr().out
    config = make_config(mqtt={"host": "localhost", "port": fleet.port, "tls": authority.settings("test")})
    async with surfaced(config, FakeDaemon()) as bench:
        await asyncio.wait_for(bench.surface.connected.wait(), 20)
        await asyncio.sleep(1.0)
    assert "the broker drops" not in capsys.readouterr().out


def test_a_renewed_certificate_is_used_without_a_restart(authority: Authority) -> None:
    tls = MqttTls(**authority.settings("test"))  # type: ignore[arg-type]
    before = context(tls)
    authority.client("renewed")
    for kind in ("crt", "key"):
        shutil.copy(authority.folder / f"renewed.{kind}", authority.folder / f"test.{kind}")
    assert context(tls) is not before


def test_certificates_are_never_overwritten_and_only_for_the_owner(authority: Authority) -> None:
    key = (authority.folder / "test.key").read_bytes()
    for args in (["authority"], ["client", "test"], ["broker", "localhost"], ["client", "../evil"], ["client", "a/b"]):
        result = subprocess.run([SHIPPED / "certificates.sh", authority.folder, *args], capture_output=True, timeout=30)
        assert result.returncode != 0, args
    assert (authority.folder / "test.key").read_bytes() == key
    assert (authority.folder / "ca.key").stat().st_mode & 0o077 == 0
