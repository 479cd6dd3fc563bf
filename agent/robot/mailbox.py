"""Commands on their way from the socket's thread to the control thread."""

import queue
import threading
from concurrent.futures import Future

from agent.clock import Clock
from agent.messages import ArmCommand, ArmEstop, ArmQuery, ArmReply

type Request = tuple[ArmCommand, Future[ArmReply]]


class Mailbox:
    """Commands wait here for the next tick; an e-stop wakes the control thread at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._stops: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self.wake = threading.Event()
        self.heard_ns = clock.now_ns()  # when the last command came that only someone gives who minds the arm

    def post(self, command: ArmCommand) -> Future[ArmReply]:
        """Hand over a command; the future gives the reply."""
        reply: Future[ArmReply] = Future()
        if not isinstance(command, ArmQuery):  # who only looks does not stand in for an agent that is gone
            self.heard_ns = self._clock.now_ns()
        if isinstance(command, ArmEstop):
            self._stops.put((command, reply))
            self.wake.set()
        else:
            self._requests.put((command, reply))
        return reply

    def take_stop(self) -> Request | None:
        return _take(self._stops)

    def take(self) -> Request | None:
        return _take(self._requests)


def _take(requests: "queue.SimpleQueue[Request]") -> Request | None:
    try:
        return requests.get_nowait()
    except queue.Empty:
        return None
