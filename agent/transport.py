"""Sockets between the processes of one station: publish/subscribe for data, request/reply for commands.

pyzmq over `ipc://`. Publishers never block: a slow subscriber loses messages, and sees the gap in their
sequence numbers. Requests carry the protocol version and are answered within a deadline or not at all.
"""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq
import zmq.asyncio

from agent.errors import BadInput, NotRunning, from_code
from agent.messages import PROTOCOL_VERSION, Problem, encode

PUBLISH_QUEUE_MESSAGES: Final = 64
"""High-water mark of data sockets: two seconds of frames at 30 fps. More would only age."""

IPC_PATH_MAX_BYTES: Final = 107
"""sockaddr_un.sun_path holds 108 bytes with its terminator (unix(7))."""

REQUEST_PARTS: Final = 4
"""Who asks, a delimiter, the protocol version, the command."""

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no message: also for text that is not UTF-8, and for too deep nesting."""

_VERSION = str(PROTOCOL_VERSION).encode()


def endpoint(path: Path) -> str:
    """The zmq address of a socket file. Raises BadInput when the path is too long for a Unix socket."""
    if len(bytes(path)) > IPC_PATH_MAX_BYTES:
        raise BadInput(
            f"The socket path {path} is {len(bytes(path))} bytes long; Unix sockets allow {IPC_PATH_MAX_BYTES}.",
            "Set a shorter run_dir in the configuration.",
        )
    return f"ipc://{path}"


def is_served(path: Path) -> bool:
    """Whether a process listens on this socket file now. zmq itself would wait for one to come."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def topic(example: msgspec.Struct) -> bytes:
    """The first bytes of every message of the example's type: its map header and tag, which come first."""
    tag = str(example.__struct_config__.tag).encode()
    body = encode(example)
    return body[: body.index(tag) + len(tag)]


class Publisher:
    """Sends messages to whoever listens. Owned by one thread."""

    def __init__(self, path: Path, queue: int = PUBLISH_QUEUE_MESSAGES) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, queue)
        self._socket.setsockopt(zmq.LINGER, 0)
        path.unlink(missing_ok=True)  # a predecessor that was killed leaves its file behind
        self._socket.bind(endpoint(path))

    def send(self, message: msgspec.Struct, payload: bytes | memoryview | None = None) -> None:
        body = encode(message)
        if payload is None:
            self._socket.send(body)
        else:
            # copy=False hands the buffer to zmq; the caller must not change it afterwards.
            self._socket.send_multipart([body, payload], copy=False)

    def close(self) -> None:
        self._socket.close()


class Subscriber:
    """Receives what publishers send. Reconnects by itself when a publisher restarts.

    With a `topic` only messages that begin with it are even sent here.
    """

    def __init__(self, *paths: Path, queue: int = PUBLISH_QUEUE_MESSAGES, topic: bytes = b"") -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, queue)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SUBSCRIBE, topic)
        # A publisher that restarts is found again within this time instead of zmq's default back-off.
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        for path in paths:
            self._socket.connect(endpoint(path))

    @property
    def socket(self) -> "zmq.Socket[bytes]":
        """For pollers that wait on several subscribers at once."""
        return self._socket

    def receive(self, timeout_s: float) -> list[zmq.Frame] | None:
        """The next message's parts (header, then payload if any), or None after `timeout_s`."""
        if not self._socket.poll(max(0, int(timeout_s * 1000))):
            return None
        parts: list[zmq.Frame] = self._socket.recv_multipart(copy=False)
        return parts

    def drain(self) -> Iterator[list[zmq.Frame]]:
        """Everything that is already here, without waiting."""
        while True:
            try:
                yield self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return

    def close(self) -> None:
        self._socket.close()


class AsyncSubscriber:
    """`Subscriber` for asyncio. With `newest` only the last message is kept, which must have one part."""

    def __init__(self, *paths: Path, topic: bytes = b"", newest: bool = False) -> None:
        self._socket = zmq.asyncio.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.CONFLATE, newest)
        self._socket.setsockopt(zmq.RCVHWM, PUBLISH_QUEUE_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SUBSCRIBE, topic)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        for path in paths:
            self._socket.connect(endpoint(path))

    async def receive(self) -> list[bytes]:
        parts: list[bytes] = await self._socket.recv_multipart()
        return parts

    def close(self) -> None:
        self._socket.close()


class CommandServer[C]:
    """Answers commands on a socket of its own. Owned by one thread; `commands` is a tagged union type."""

    def __init__(self, path: Path, commands: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[C] = msgspec.msgpack.Decoder(commands)
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 200)  # long enough for a last reply at shutdown, in ms
        path.unlink(missing_ok=True)
        self._socket.bind(endpoint(path))

    def receive(self, timeout_s: float) -> tuple[list[bytes], C] | None:
        """The next valid command and the envelope to answer it with. Invalid ones are answered here.

        Never raises for what came in: an e-stop may be the next that does.
        """
        if not self._socket.poll(max(0, int(timeout_s * 1000))):
            return None
        parts = self._socket.recv_multipart()
        if len(parts) < REQUEST_PARTS:
            return None  # not from a REQ socket: there is nobody to answer
        *envelope, version, body = parts
        if version != _VERSION:
            sentence = f"Protocol version {version[:8]!r} is not {PROTOCOL_VERSION}."
            self.reply(envelope, Problem("bad-input", sentence, "Use the same so-agent version on both sides."))
            return None
        try:
            return envelope, self._decoder.decode(body)
        except UNREADABLE as error:
            self.reply(envelope, Problem("bad-input", f"Malformed command: {error}."))
            return None

    def reply(self, envelope: list[bytes], message: msgspec.Struct) -> None:
        self._socket.send_multipart([*envelope, encode(message)])

    def close(self) -> None:
        self._socket.close()


def _request_socket() -> "zmq.Socket[bytes]":
    peer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    peer.setsockopt(zmq.LINGER, 0)
    return peer


class CommandClient[R]:
    """Sends one command at a time and waits for its reply. `replies` is a tagged union with `Problem`."""

    def __init__(self, path: Path, replies: Any) -> None:
        self._path = path
        self._decoder: msgspec.msgpack.Decoder[R | Problem] = msgspec.msgpack.Decoder(replies)

    def ask(self, command: msgspec.Struct, timeout_s: float) -> R:
        """The reply. Raises NotRunning without one in time, or the error that the other side reported."""
        with contextlib.closing(_request_socket()) as peer:
            peer.connect(endpoint(self._path))
            peer.send_multipart([_VERSION, encode(command)])
            if not peer.poll(int(timeout_s * 1000)):
                raise NotRunning(f"Nothing answered on {self._path} within {timeout_s:g} s.")
            return self._open(peer.recv())

    def _open(self, body: bytes) -> R:
        message = self._decoder.decode(body)
        if isinstance(message, Problem):
            raise from_code(message.code, message.message, message.hint)
        return message


class AsyncCommandClient[R](CommandClient[R]):
    """`CommandClient` for asyncio. A new socket for every command: a lost reply cannot poison the next."""

    async def ask_async(self, command: msgspec.Struct, timeout_s: float) -> R:
        peer = zmq.asyncio.Context.instance().socket(zmq.REQ)
        try:
            peer.setsockopt(zmq.LINGER, 0)
            peer.connect(endpoint(self._path))
            await peer.send_multipart([_VERSION, encode(command)])
            if not await peer.poll(int(timeout_s * 1000)):
                raise NotRunning(f"Nothing answered on {self._path} within {timeout_s:g} s.")
            return self._open(await peer.recv())
        finally:
            peer.close()
