"""All that a station sends, as it leaves its computer: a gate like the fleet's that writes everything down."""

import contextlib
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import uvicorn

from agent.fl.fleet_gate import Gate, Receive, Scope, Send
from tests.fl.bench import Server

type Sent = dict[str, list[bytes]]

PUSHED = "/v1/fleet/push-object"


@dataclass
class Recorded:
    """Bodies by path, and the headers of all requests as one text."""

    bodies: Sent = field(default_factory=lambda: defaultdict(list))
    headers: set[bytes] = field(default_factory=set)

    @property
    def everything(self) -> bytes:
        return b"\n".join([body for bodies in self.bodies.values() for body in bodies] + sorted(self.headers))

    def objects(self) -> list[tuple[str, bytes]]:
        """What messages are made of: kind and content, as Flower names and packs them."""
        from flwr.proto.message_pb2 import PushObjectRequest

        found = []
        for body in self.bodies[PUSHED]:
            content = PushObjectRequest.FromString(body).object_content
            head, _, rest = content.partition(b"\x00")
            found.append((head.split()[0].decode(), rest))
        return found

    def table(self) -> str:
        """For people."""
        rows = [
            f"{path.removeprefix('/v1/fleet/'):26s}{len(bodies):8d}{sum(map(len, bodies)):12,d}"
            for path, bodies in sorted(self.bodies.items())
        ]
        kinds: dict[str, list[int]] = defaultdict(list)
        for kind, rest in self.objects():
            kinds[kind].append(len(rest))
        rows += [f"  of them {kind:16s}{len(sizes):8d}{sum(sizes):12,d}" for kind, sizes in sorted(kinds.items())]
        return "\n".join([f"{'request':26s}{'times':>8s}{'bytes':>12s}", *rows])


class _RecordingGate(Gate):
    def __init__(self, superlink: str, server: Server, recorded: Recorded) -> None:
        super().__init__(superlink, server.fleet.authority)
        self._recorded = recorded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        pieces: list[bytes] = []

        async def tee() -> object:
            message = await receive()
            pieces.append(message.get("body", b""))
            return message

        await super().__call__(scope, tee, send)  # type: ignore[arg-type]
        self._recorded.bodies[scope["path"]].append(b"".join(pieces))
        self._recorded.headers |= {b": ".join(pair) for pair in scope["headers"]}


@contextlib.contextmanager
def recording(server: Server, port: int) -> Iterator[Recorded]:
    """While the fleet is served: the same fleet at another port of this computer."""
    recorded = Recorded()
    gate = uvicorn.Server(
        uvicorn.Config(
            _RecordingGate(server.fleet.serving().control, server, recorded),
            host="127.0.0.1", port=port, log_config=None, access_log=False, ws="none",
            ssl_certfile=str(server.fleet.certificate), ssl_keyfile=str(server.fleet.key),
        )
    )  # fmt: skip
    thread = threading.Thread(target=gate.run, daemon=True)
    thread.start()
    try:
        _wait_for(port)
        yield recorded
    finally:
        gate.should_exit = True
        thread.join(20)


def _wait_for(port: int, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
