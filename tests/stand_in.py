"""A thread in the place of one of the agent's processes: on its real socket, without what it takes to import it."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from agent.transport import CommandServer


class StandIn(threading.Thread):
    """Answers each command on the socket with what `answer` says. A context manager; hears from when it is made."""

    def __init__(self, path: Path, commands: Any) -> None:
        """`commands` is the tagged union of what the process understands."""
        super().__init__(daemon=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._server: CommandServer[Any] = CommandServer(path, commands)
        self._ending = threading.Event()

    def answer(self, command: Any) -> msgspec.Struct:
        raise NotImplementedError

    def run(self) -> None:
        while not self._ending.is_set():
            if request := self._server.receive(0.02):
                envelope, command = request
                self._server.reply(envelope, self.answer(command))
        self._server.close()

    def close(self) -> None:
        self._ending.set()
        self.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
