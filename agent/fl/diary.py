"""What a SuperNode prints, read for what it says about how things are. A pure function of its lines.

Flower has no other way to tell. The sentences are those of flwr 1.42; tests/fl/station/test_contract.py holds them
against the real program.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

from agent.fl.runner import SAYS

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_ERROR: Final = re.compile(r"ERROR\s*:\s*")
_NODE: Final = re.compile(r"SuperNode ID: (\d+)")
_EXIT: Final = re.compile(r"Exit Code: (\d+)")
_CODE: Final = re.compile(r"\[code: (\d+)\]")
_RETRY: Final = re.compile(r"retrying in ([\d.]+) seconds")
_RUN: Final = re.compile(r"\[RUN (\d+)(?:, ROUND (\d+))?\]")

ACTIVATION_REFUSED: Final = 2004
"""Either the key is not registered, or the session of a SuperNode that was killed has not expired yet."""

GOT: Final = "Receiving: "
HAVE: Final = "Received successfully"
SENT: Final = ("Sent successfully", "Ignoring reply message", "Failed to send message")
DROPPED: Final = ("Failed to receive message", "Ignoring message", "Ignoring the message")
AGAIN: Final = "Connection successful after"
FORGOTTEN: Final = "Heartbeat failed unexpectedly"
LEFT: Final = "SuperNode terminated gracefully"
TLS: Final = "SSL/TLS handshake error detected"

TRIES_TO_TELL: Final = 2
"""A single failed attempt is usual: the executor is started before what it connects to listens."""


@dataclass
class Diary:
    """How a SuperNode is, as far as it has said."""

    node_id: int | None = None  # set while it is known to the fleet
    run: int | None = None
    round: int | None = None
    busy: bool = False  # a message is here and its reply has not left
    tries: int = 0  # failed attempts to reach someone, in a row
    lost_s: float = 0.0  # the time between them
    exit_code: int | None = None
    refusal: int | None = None  # Flower's code of why it was not let in
    forgotten: bool = False  # the fleet does not know this session any more
    tls: bool = False
    error: str = ""  # the last one
    received: int = 0
    sent: int = 0
    said: list[dict[str, Any]] = field(default_factory=list)  # by trainers, not yet taken

    def hear(self, line: str) -> None:
        """One line."""
        text = _COLOUR.sub("", line).strip()
        if text.startswith(SAYS):
            self._listen(text.removeprefix(SAYS))
        elif match := _RUN.search(text):
            self.run, self.round = int(match[1]), int(match[2]) if match[2] else None
        elif GOT in text:
            self.busy = True
        elif HAVE in text:
            self.received += 1
        elif any(words in text for words in SENT):
            self.busy = False
            self.sent += SENT[0] in text
        elif any(words in text for words in DROPPED):
            self.busy = False
        else:
            self._connection(text)

    def _connection(self, text: str) -> None:
        if match := _NODE.search(text):
            self.node_id, self.tries, self.lost_s = int(match[1]), 0, 0.0
        elif match := _RETRY.search(text):
            self.tries, self.lost_s = self.tries + 1, self.lost_s + float(match[1])
        elif AGAIN in text:
            self.tries, self.lost_s = 0, 0.0
        elif FORGOTTEN in text:
            self.forgotten = True
        elif LEFT in text:
            self.node_id = None
        elif TLS in text:
            self.tls = True
        if _ERROR.match(text):
            self.error = _ERROR.sub("", text)
        if match := _EXIT.search(text):
            self.exit_code = int(match[1])
        if match := _CODE.search(text):
            self.refusal = int(match[1])

    def _listen(self, text: str) -> None:
        try:
            what = json.loads(text)
        except ValueError:
            return
        if isinstance(what, dict):
            self.said.append(what)

    def take_said(self) -> list[dict[str, Any]]:
        """What trainers said since the last time."""
        said, self.said = self.said, []
        return said

    @property
    def unreachable(self) -> bool:
        return self.tries >= TRIES_TO_TELL
