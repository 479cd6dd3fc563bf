"""The only way into a fleet: TLS in front of the SuperLink, open for what SuperNodes ask and for nothing else.

Flower serves its fleet, runtime and control APIs on one port, and the keys of stations protect only the first. Whoever
reaches the control API can run code on every station. So the SuperLink listens on loopback, and this forwards the
requests of SuperNodes to it, byte by byte; authentication stays Flower's own, in the headers.

    python -m agent.fl.fleet_gate FOLDER HOST:PORT 127.0.0.1:PORT
"""

import asyncio
import contextlib
import logging
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn

from agent.config import Logging
from agent.fl.fleet import Fleet
from agent.telemetry import configure, logger

FORWARDED: Final = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
)
"""What a SuperNode with a registered key asks. Registering itself is not among it: keys are put in by people."""

MAX_BODY_BYTES: Final = 64 * 1024**2
"""Flower cuts arrays into pieces of 5 MB; the largest single thing is an app of at most 10 MB."""

MAX_CONNECTIONS: Final = 1024
TIMEOUT_S: Final = 60.0
"""Above Flower's own 30 s, so that it is Flower that gives up first."""

KEEP_ALIVE_S: Final = 30
HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade host "
    b"content-length date server".split()
)

type Scope = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
type Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class TooLarge(Exception):
    """A body above MAX_BODY_BYTES."""


class Gate:
    """An ASGI application."""

    def __init__(self, superlink: str, authority: Path) -> None:
        """`superlink` is 127.0.0.1:PORT; its certificate is checked like any other."""
        self._superlink = superlink
        self._client = httpx.AsyncClient(
            verify=ssl.create_default_context(cafile=str(authority)),
            timeout=TIMEOUT_S,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            follow_redirects=False,
            trust_env=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "lifespan":
                await self._lifespan(receive, send)
            case "http":
                await self._answer(scope, receive, send)
            case _:  # a WebSocket, which Flower has none of
                await send({"type": "websocket.close"})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._client.aclose()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST" or scope["path"] not in FORWARDED or scope["query_string"]:
            logger.info("refused", method=scope["method"], path=scope["path"][:100], client=_client(scope))
            await _plain(send, 404, b"not here\n")
            return
        headers = [(name, value) for name, value in scope["headers"] if name not in HOP_BY_HOP]
        # The path comes from the set above, not from the request: nothing of it can mean something else behind.
        request = self._client.build_request(
            "POST", f"https://{self._superlink}{scope['path']}", headers=headers, content=_body(receive)
        )
        try:
            response = await self._client.send(request, stream=True)
        except TooLarge:
            await _plain(send, 413, b"too large\n")
            return
        except httpx.TransportError as error:
            logger.warning("the SuperLink does not answer", problem=repr(error))
            await _plain(send, 503, b"try again later\n")  # which SuperNodes do
            return
        async with contextlib.aclosing(response):
            kept = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in HOP_BY_HOP]
            await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
            async for piece in response.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise httpx.ReadError("the station hung up")
        size += len(message.get("body", b""))
        if size > MAX_BODY_BYTES:
            raise TooLarge
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def _plain(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _client(scope: Scope) -> str:
    return str((scope.get("client") or ("?",))[0])


def server(fleet: Fleet, host: str, port: int, superlink: str) -> uvicorn.Server:
    """A server that is not started yet."""
    return uvicorn.Server(
        uvicorn.Config(
            Gate(superlink, fleet.authority),
            host=host,
            port=port,
            ssl_certfile=str(fleet.certificate),
            ssl_keyfile=str(fleet.key),
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            ws="none",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
    )


def main() -> None:
    folder, address, superlink = sys.argv[1:]
    host, _, port = address.rpartition(":")
    configure(Logging(), "fleet-gate")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    gate = server(Fleet(Path(folder)), host.strip("[]"), int(port), superlink)
    asyncio.run(gate.serve())
    sys.exit(0 if gate.started else 1)


if __name__ == "__main__":
    main()
