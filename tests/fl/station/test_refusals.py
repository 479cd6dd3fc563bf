"""Who and what is not let in, and the sentence that says so."""

import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError

import pytest

from agent.fl.exchange import Decline
from agent.fl.fleet import Fleet
from agent.fl.fleet_gate import FORWARDED
from agent.fl.node import NodeState
from tests.fl.bench import Member, Server, notes, until
from tests.station.live import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


async def test_a_key_that_was_not_registered_is_not_let_in(
    shared_server: Server, member: Callable[..., Member]
) -> None:
    stranger = member("stranger")
    stranger.enroll(shared_server)
    stranger.start()
    await stranger.until(NodeState.WAITING)
    assert "does not know this station's key SHA256:" in stranger.reason
    assert "so-agent fleet add-station" in stranger.reason


async def test_a_key_that_is_registered_meanwhile_is_let_in_and_out_again(
    shared_server: Server, member: Callable[..., Member]
) -> None:
    late = member("late", shared_server)
    late.start()
    await late.until(NodeState.ONLINE)
    shared_server.fleet.remove_station("late")
    await late.until(NodeState.WAITING)
    await until("it is told", lambda: "does not know this station's key" in late.reason)


async def test_a_fleet_with_another_authority_is_not_trusted(
    shared_server: Server, member: Callable[..., Member], tmp_path: Path
) -> None:
    other = Fleet.init(tmp_path / "other", "other", ())
    careful = member("careful")
    careful.enroll(shared_server, other.authority)
    careful.start()
    await careful.until(NodeState.WAITING)
    assert "is not the fleet that this station was enrolled with" in careful.reason
    assert not careful.log()  # nothing was even started


async def test_a_fleet_that_is_not_there_is_said_to_be_away(member: Callable[..., Member], tmp_path: Path) -> None:
    lonely = member("lonely")
    pem = Fleet.init(tmp_path / "away", "away", ()).authority.read_text()
    lonely.federation.membership.enroll(f"127.0.0.1:{free_ports(1)[0]}", pem, None)
    lonely.start()
    await lonely.until(NodeState.WAITING)
    assert "cannot be reached: " in lonely.reason
    assert "trying again in 5 s" in lonely.reason


async def test_what_goes_wrong_in_an_app_is_told_to_the_station_and_its_kind_to_the_fleet(
    shared_server: Server, member: Callable[..., Member]
) -> None:
    clumsy = member("clumsy", shared_server)
    clumsy.start()
    await clumsy.until(NodeState.ONLINE)
    output = await shared_server.be_patient("clumsy", num_server_rounds=1, manners="clumsy")
    await until("the server has its answer", lambda: notes(output))
    assert notes(output)[0]["errors"] == [[Decline.FAILED, Decline.FAILED.sentence]]
    await until("the station has the rest", lambda: "/home/ada/kitchen" in clumsy.log())


async def test_an_app_that_is_not_on_the_list_is_refused_before_it_is_unpacked(
    shared_server: Server, member: Callable[..., Member]
) -> None:
    strict = member("strict", shared_server, apps=())
    strict.start()
    await strict.until(NodeState.ONLINE)
    output = await shared_server.be_patient("foreign", num_server_rounds=1)
    await until("the server has its answer", lambda: notes(output))
    [[code, reason]] = notes(output)[0]["errors"]
    assert code == 1004
    assert "is not on this station's list" in reason
    assert "federation.apps" in strict.federation.report()["refused"]
    assert any("is not on this station's list" in each for each in strict.desk.told)
    assert not list(strict.federation.node.folders.home.rglob("patient*"))
    await strict.until(NodeState.ONLINE)  # and not deaf


def test_the_gate_opens_for_what_stations_ask_and_for_nothing_else(shared_server: Server) -> None:
    context = ssl.create_default_context(cafile=str(shared_server.fleet.authority))

    def ask(path: str, method: str = "POST") -> int:
        request = urllib.request.Request(f"https://{shared_server.address}{path}", data=b"", method=method)
        try:
            return int(urllib.request.urlopen(request, context=context, timeout=20).status)  # noqa: S310 - https
        except HTTPError as error:
            return error.code

    for path in (
        "/v1/control/start-run",
        "/v1/control/list-nodes",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "//v1/control/list-nodes",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?x=1",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
    ):
        assert ask(path) == 404, path
    assert ask("/v1/fleet/pull-messages", "GET") == 404
    for path in sorted(FORWARDED):  # forwarded, and refused by Flower: no message, no signature
        assert ask(path) in (400, 401, 415, 422), path


def test_the_superlink_itself_listens_on_loopback_only(shared_server: Server) -> None:
    control = shared_server.fleet.serving().control
    assert control.startswith("127.0.0.1:")
    port = f":{int(control.rpartition(':')[2]):04X}"
    listening = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    ]
    assert [address for address in listening if address.endswith(port)] == [f"0100007F{port}"]
    listening6 = [line.split()[1] for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    assert not [address for address in listening6 if address.endswith(port)]
