"""How a session of a SuperNode comes to its end, step by step: the trainer stands still, goes on and replies; then the
SuperNode leaves. A trainer that takes too long is told to reply that it was busy, and one that does not is ended.

Between the reply and the goodbye lies a while in which the SuperNode stands still. A SuperLink (Flower 1.42) looks who
is online before it looks for replies: what a node has sent is lost when it signs off before the run has fetched it.
"""

from dataclasses import dataclass
from typing import Final

from agent.clock import nanoseconds
from agent.fl.room import Room
from agent.fl.supernode import STOP_S, SuperNode
from agent.telemetry import logger

END_S: Final = 10.0
"""From asking a trainer to reply that it was busy to ending it: torch may be in the middle of a step."""

FETCHED_S: Final = 8.0
"""From a reply to the goodbye. Runs look for replies every three seconds, and a busy server is late."""


@dataclass
class Leaving:
    """One end of a session."""

    reason: str
    deadline_ns: int  # for the reply
    thaw_ns: int | None = None  # the trainer stands still until then
    asked_ns: int | None = None  # to reply that it was busy
    stopped_ns: int | None = None  # the SuperNode was told to go

    def step(self, supernode: SuperNode, room: Room, sent_ns: int | None, now_ns: int) -> None:
        """What is due; `sent_ns` is when the last reply left. Called several times a second until it has ended."""
        tenant = room.tenant()
        if self.thaw_ns and now_ns >= self.thaw_ns and room.frozen:
            room.thaw()
        if self.stopped_ns is not None:
            if now_ns - self.stopped_ns > nanoseconds(STOP_S):
                room.clear()
        elif not tenant and not supernode.diary.busy:
            if sent_ns is not None and now_ns - sent_ns < nanoseconds(FETCHED_S):
                supernode.pause()  # or it would begin with the next message
            else:
                self._stop(supernode, now_ns)
        elif self.asked_ns is not None:
            if now_ns - self.asked_ns > nanoseconds(END_S):
                logger.warning("the trainer does not end in time and is ended", pid=tenant)
                room.end_trainer()
                self._stop(supernode, now_ns)
        elif now_ns >= self.deadline_ns:
            room.thaw()
            room.ask_to_end()
            self.asked_ns = now_ns

    def _stop(self, supernode: SuperNode, now_ns: int) -> None:
        self.stopped_ns = now_ns
        supernode.ask_to_stop()
