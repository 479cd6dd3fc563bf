"""How much of its computer a fleet takes for a station that waits: see `python -m benchmarks.federation requests`."""

import asyncio
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from agent.fl import station_key
from benchmarks.control_bench.host import children_of, command, cpu_s
from benchmarks.control_bench.rig import free_ports
from tests.fl.bench import Server

STATIONS: Final = 4
NOTICED_S: Final = 5.0
"""`fleet serve` looks for new keys every two seconds."""

HEARTBEAT_S: Final = 30.0
GATE: Final = "fleet_gate"


class Station:
    """A key, and the requests of a SuperNode that has nothing to do."""

    def __init__(self, server: Server, name: str) -> None:
        pem = station_key.generate()
        line = station_key.public_of(pem, name)
        server.fleet.add_station(name, line)
        self._public = station_key.public_bytes(line)
        self._key = load_ssh_private_key(pem, None)
        self._server = server
        self.asked = 0

    def ask(self, until_s: float) -> None:
        """One request after the other."""
        key = self._key
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - just made
        with FleetHttpClient.from_server_address(
            self._server.address,
            insecure=False,
            root_certificates=self._server.fleet.authority.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
        ) as client:
            request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_S)
            node = Node(node_id=client.ActivateNode(request).node_id)
            while time.monotonic() < until_s:
                client.PullMessages(PullMessagesRequest(node=node))
                self.asked += 1
            client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))


async def ask_for(seconds: float) -> dict[str, Any]:
    """JSON. CPU time does not depend on what else the computer does, as the rate does."""
    folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))  # Unix sockets need a short path
    server = Server(folder, free_ports(1)[0])
    try:
        server.start()
        await server.ready()
        stations = [Station(server, f"station-{number}") for number in range(STATIONS)]
        await asyncio.sleep(NOTICED_S)
        before, began_s = _cpu_s(server), time.monotonic()
        threads = [threading.Thread(target=each.ask, args=(began_s + seconds,)) for each in stations]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        took_s, asked = time.monotonic() - began_s, sum(each.asked for each in stations)
        after = _cpu_s(server)
        return {
            "requests": asked,
            "a_second": round(asked / took_s, 1),
            "cpu_ms_a_request": {name: round(1000 * (after[name] - before[name]) / max(1, asked), 2) for name in after},
        }
    finally:
        await asyncio.to_thread(server.stop)
        shutil.rmtree(folder, ignore_errors=True)


def _cpu_s(server: Server) -> dict[str, float]:
    """Of the gate, and of the SuperLink with all that it starts."""
    assert server.process  # noqa: S101 - it was started
    used = cpu_s(children_of(server.process.pid))
    gate = sum(seconds for pid, seconds in used.items() if GATE in command(pid))
    return {"gate": gate, "superlink": sum(used.values()) - gate}
