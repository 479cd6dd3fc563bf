"""The daemon's Unix socket: one JSON object a line, in both directions.

    -> {"verb": "teleop.start", "args": {}}
    <- {"progress": {...}}                                    any number, for long work
    <- {"ok": true, "result": {...}}
    <- {"ok": false, "code": "refused", "message": "...", "hint": "..."}

Who may open the socket may move the arm: it lies in a folder of mode 0700 and is itself 0600, so the
file system is the authentication.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from agent.errors import AgentError, BadInput, NotRunning, from_code
from agent.telemetry import logger

MAX_LINE_BYTES: Final = 256 * 1024
"""Far above any request; a peer that sends more is broken."""

type Progress = Callable[[dict[str, Any]], Awaitable[None]]
type Handler = Callable[[str, dict[str, Any], Progress], Awaitable[dict[str, Any]]]


@contextlib.asynccontextmanager
async def serve(path: Path, handle: Handler) -> AsyncIterator[None]:
    """Answer on `path` while the context is open."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        writers: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_unix_server(_connection(handle, writers), path, limit=MAX_LINE_BYTES)
    finally:
        os.umask(before)
    try:
        yield
    finally:
        server.close()
        for writer in writers:  # a client that waits for progress must not keep the agent from stopping
            writer.close()
        path.unlink(missing_ok=True)


def _connection(
    handle: Handler, writers: set[asyncio.StreamWriter]
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send(line: bytes) -> None:
            writer.write(line + b"\n")
            await writer.drain()

        async def progress(event: dict[str, Any]) -> None:
            await send(json.dumps({"progress": event}).encode())

        writers.add(writer)
        try:
            with contextlib.suppress(ConnectionError):  # a client that hangs up ends only its own conversation
                while line := await _read_line(reader, send):
                    await send(await _answer(handle, line, progress))
        finally:
            writers.discard(writer)
            writer.close()

    return connection


async def _read_line(reader: asyncio.StreamReader, send: Callable[[bytes], Awaitable[None]]) -> bytes:
    """The next line, or nothing at the end of the conversation."""
    try:
        return await reader.readline()
    except ValueError:  # longer than MAX_LINE_BYTES
        await send(_problem(BadInput(f"A request line may hold {MAX_LINE_BYTES} bytes.")))
        return b""


async def _answer(handle: Handler, line: bytes, progress: Progress) -> bytes:
    try:
        verb, args = _parse(line)
        return json.dumps({"ok": True, "result": await handle(verb, args, progress)}).encode()
    except AgentError as error:
        return _problem(error)
    except ConnectionError:
        raise
    except Exception as error:  # noqa: BLE001 - the edge of the daemon: one bad request must not end the station
        logger.exception("request failed", error=repr(error))
        return _problem(AgentError(f"The agent failed on this request: {error!r}.", "See its log."))


def _parse(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        request = json.loads(line)
    except ValueError as error:
        raise BadInput(f"Not a JSON object: {error}.") from error
    match request:
        case {"verb": str(verb), "args": dict(args)}:
            return verb, args
        case {"verb": str(verb)}:
            return verb, {}
        case _:
            raise BadInput('Expected {"verb": "...", "args": {...}}.')


def _problem(error: AgentError) -> bytes:
    return json.dumps({"ok": False, "code": error.code, "message": error.message, "hint": error.hint}).encode()


class Client:
    """Talks to a running agent; one connection a call."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def call(
        self,
        verb: str,
        args: dict[str, Any] | None = None,
        timeout_s: float | None = 10.0,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """The result of one verb. `timeout_s` bounds the silence between two lines, not the whole call.

        Raises NotRunning when nothing answers, or the error that the agent reported.
        """
        try:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(timeout_s)
                peer.connect(str(self._path))
                peer.sendall(json.dumps({"verb": verb, "args": args or {}}).encode() + b"\n")
                for line in peer.makefile("rb"):
                    message = json.loads(line)
                    if "progress" in message:
                        if on_progress:
                            on_progress(message["progress"])
                        continue
                    if message["ok"]:
                        result: dict[str, Any] = message["result"]
                        return result
                    raise from_code(message["code"], message["message"], message.get("hint", ""))
        except TimeoutError as error:
            raise NotRunning(
                f"The agent on {self._path} did not answer within {timeout_s:g} s.",
                "It may hang: `so-agent estop` still reaches the arm.",
            ) from error
        except (OSError, ValueError) as error:
            raise NotRunning(
                f"No agent answers on {self._path} ({error}).", "Start it with `so-agent run -c FILE`."
            ) from error
        raise NotRunning(f"The agent on {self._path} hung up before it answered.", "See its log.")
