"""The file of `--wire-log`: every goal on the wire, and where the servo was then, one line of JSON each."""

import json
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from agent.errors import BadInput
from agent.virtual.bus import Goals, Present
from agent.virtual.realtime import run_like_hardware

CLOSE_S: Final = 5.0
"""For what is still to be written; a disk that takes longer may have it without us."""

type _Packet = tuple[str, int, Goals, Present]


class WireFile:
    """Appends packets of goals from a thread of its own: a servo does not wait for a disk.

    What was on the wire is in the file a moment later, also when the station is killed after that.
    """

    def __init__(self, path: Path) -> None:
        """Raises BadInput when the file cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise BadInput(f"The wire log {path} cannot be written: {error.strerror}.", "Name another file.") from error
        self._packets: SimpleQueue[_Packet | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="wire log", daemon=True)
        self._thread.start()

    def append(self, arm: str, at_ns: int, goals: Goals, present: Present) -> None:
        """One packet, as `WireLog.sink` is told of it. Never waits."""
        self._packets.put((arm, at_ns, goals, present))

    def close(self) -> None:
        """When all of it is written."""
        self._packets.put(None)
        self._thread.join(CLOSE_S)

    def _write(self) -> None:
        run_like_hardware()
        with self._file as file:
            while packet := self._packets.get():
                arm, at_ns, goals, present = packet
                rows = (
                    json.dumps({"ns": at_ns, "arm": arm, "id": servo, "goal": raw, "present": at})
                    for (servo, raw), at in zip(goals, present, strict=True)
                )
                file.write("\n".join(rows) + "\n")
                file.flush()
