"""The daemon's Unix socket: one JSON object a line, in both directions.

    -> {"verb": "teleop.start", "args": {}}
    <- {"progress": {...}}                                    any number, for long work
    <- {"ok": true, "result": {...}}
    <- {"ok": false, "code": "refused", "message": "...", "hint": "..."}

Who may open the socket may move the arm: it lies in a folder of mode 0700 and is itself 0600 (0750 and 0660 for the
members of a service's group), so the file system is the authentication. What a request says of itself can only take
rights away: `via` makes it a remote one, which needs a lease to move the arm.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from agent.errors import AgentError, BadInput, NotRunning, from_code
from agent.telemetry import logger

MAX_LINE_BYTES: Final = 256 * 1024
"""Far above any request; a peer that sends more is broken."""

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""A list of a hundred thousand episodes."""

OWNER_ONLY: Final = 0o600
OWNER_AND_GROUP: Final = 0o660

EVENTS_SILENCE_S: Final = 10.0
"""The agent says something every 2 s to those who follow its events."""

RECONNECT_S: Final = 0.5
ALIVE_S: Final = 2.0
"""Five chances before the supervisor takes a process of a surface for hung."""

type Progress = Callable[[dict[str, Any]], Awaitable[None]]
type Handler = Callable[[str, dict[str, Any], Progress], Awaitable[dict[str, Any]]]


@contextlib.asynccontextmanager
async def serve(path: Path, handle: Handler, mode: int = OWNER_ONLY) -> AsyncIterator[None]:
    """Answer on `path` while the context is open. `mode` is the socket's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    conversations: set[asyncio.Task[None]] = set()

    # Not a coroutine: asyncio's own task for one complains loudly when it is cancelled.
    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.create_task(_converse(handle, reader, writer), name="conversation")
        conversations.add(conversation)
        conversation.add_done_callback(conversations.discard)

    before = os.umask(~mode & 0o777)
    try:
        server = await asyncio.start_unix_server(accept, path, limit=MAX_LINE_BYTES)
    finally:
        os.umask(before)
    try:
        yield
    finally:
        server.close()
        ending = [*conversations]
        for conversation in ending:  # a client that waits for progress must not keep the agent from stopping
            conversation.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        path.unlink(missing_ok=True)


async def _converse(handle: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def send(line: bytes) -> None:
        writer.write(line + b"\n")
        await writer.drain()

    async def progress(event: dict[str, Any]) -> None:
        await send(json.dumps({"progress": event}).encode())

    try:
        with contextlib.suppress(ConnectionError):  # a client that hangs up ends only its own conversation
            while line := await _read_line(reader, send):
                await send(await _answer(handle, line, progress))
    finally:
        writer.close()


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


def _request(verb: str, args: dict[str, Any] | None) -> bytes:
    return json.dumps({"verb": verb, "args": args or {}}).encode() + b"\n"


def _result(message: dict[str, Any]) -> dict[str, Any]:
    """What the last line of an answer holds. Raises the error that the agent reported."""
    if message["ok"]:
        result: dict[str, Any] = message["result"]
        return result
    raise from_code(message["code"], message["message"], message.get("hint", ""))


def _silent(path: Path, timeout_s: float | None) -> NotRunning:
    return NotRunning(
        f"The agent on {path} did not answer within {timeout_s:g} s.",
        "It may hang: `so-agent estop` still reaches the arm.",
    )


def _absent(path: Path, error: Exception) -> NotRunning:
    return NotRunning(f"No agent answers on {path} ({error}).", "Start it with `so-agent run -c FILE`.")


def _hung_up(path: Path) -> NotRunning:
    return NotRunning(f"The agent on {path} hung up before it answered.", "See its log.")


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
                peer.sendall(_request(verb, args))
                for line in peer.makefile("rb"):
                    message = json.loads(line)
                    if "progress" not in message:
                        return _result(message)
                    if on_progress:
                        on_progress(message["progress"])
        except TimeoutError as error:
            raise _silent(self._path, timeout_s) from error
        except (OSError, ValueError) as error:
            raise _absent(self._path, error) from error
        raise _hung_up(self._path)


class AsyncClient:
    """`Client` for asyncio: what the processes of the surfaces talk through.

    With `via` every request says which surface it came through, which makes it a remote one: it may move the arm only
    with a lease (`agent.lease`).
    """

    def __init__(self, path: Path, via: str | None = None) -> None:
        self._path = path
        self._marks = {"via": via} if via else {}

    async def call(
        self,
        verb: str,
        args: dict[str, Any] | None = None,
        timeout_s: float | None = 10.0,
        on_progress: Progress | None = None,
    ) -> dict[str, Any]:
        """The result of one verb. `timeout_s` bounds the silence between two lines, not the whole call.

        Raises NotRunning when nothing answers, or the error that the agent reported.
        """
        async with contextlib.aclosing(self._lines(verb, args, timeout_s)) as lines:
            async for message in lines:
                if "progress" not in message:
                    return _result(message)
                if on_progress:
                    await on_progress(message["progress"])
        raise _hung_up(self._path)

    async def events(self, since: int = 0) -> AsyncGenerator[dict[str, Any]]:
        """What happens at the station, for ever: `{"event": {...}}`, `{"lost": n}` before one that others were lost
        before, `{"last": seq}` when nothing happened for a while, and `{"running": false}` once for every time that
        the agent goes away.

        After an interruption it goes on behind the last event that was given out, as soon as an agent answers.
        """
        gone = False
        while True:
            try:
                args = {"since": since, "follow": True}
                async with contextlib.aclosing(self._lines("events", args, EVENTS_SILENCE_S)) as lines:
                    async for message in lines:
                        if "progress" not in message:
                            _result(message)
                            break  # no agent ends this by itself
                        told, gone = message["progress"], False
                        if "event" in told:
                            since = told["event"]["seq"]
                        yield told
            except NotRunning as error:
                logger.debug("events interrupted", problem=error.message)
            if not gone:
                gone = True
                yield {"running": False}
            await asyncio.sleep(RECONNECT_S)

    async def stay_alive(self, child: str) -> None:
        """Tell the supervisor that this process lives, for ever. Run it on the event loop that does the work."""
        while True:
            # An agent that is gone ends its children; one that hangs watches nobody.
            with contextlib.suppress(AgentError):
                await self.call("alive", {"child": child}, timeout_s=ALIVE_S)
            await asyncio.sleep(ALIVE_S)

    async def _lines(
        self, verb: str, args: dict[str, Any] | None, timeout_s: float | None
    ) -> AsyncGenerator[dict[str, Any]]:
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(self._path, limit=MAX_ANSWER_BYTES)
        except TimeoutError as error:
            raise _silent(self._path, timeout_s) from error
        except OSError as error:
            raise _absent(self._path, error) from error
        try:
            writer.write(_request(verb, (args or {}) | self._marks))
            while True:
                async with asyncio.timeout(timeout_s):
                    line = await reader.readline()
                if not line:
                    return
                yield json.loads(line)
        except TimeoutError as error:
            raise _silent(self._path, timeout_s) from error
        except (OSError, ValueError) as error:
            raise _absent(self._path, error) from error
        finally:
            writer.close()
