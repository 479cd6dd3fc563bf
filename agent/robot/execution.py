"""The arm's end of a task: chunks come in from the policy, one pose a tick goes out, starvation is counted.

Whatever arrives, nothing of it raises into the control loop: a message that is no chunk of this task is counted,
by reason, and dropped.
"""

from itertools import islice
from typing import Final

import msgspec
import zmq

from agent.clock import Clock, nanoseconds, seconds
from agent.config import StationConfig
from agent.errors import Refused
from agent.inference.queue import ChunkQueue, Verdict
from agent.messages import Execution, Joints
from agent.policy_messages import Chunk
from agent.telemetry import logger
from agent.transport import UNREADABLE, Subscriber, topic

FIRST_CHUNK_S: Final = 10.0
"""How long a task may take to its first chunk, at least: cameras come up, and a first inference is slow."""

TICKS_LATE_S: Final = 0.2
"""By how much the ticks of a schedule may be late in all before the clock overrules them."""

MAX_CHUNK_BYTES: Final = 64 * 1024
"""A chunk of 50 actions has 3 kB."""

MAX_A_TICK: Final = 8
"""Messages looked at in one tick; a flood must not keep the arm waiting."""

NO_CHUNK: Final = "unreadable"
"""Dropped because it is no chunk at all. The other reasons are the queue's verdicts."""

CHUNKS: Final = topic(Chunk(0, 0, 0, 0, (), "", 0))


class Executor:
    """Takes chunks and gives poses. Used by the control thread only."""

    def __init__(self, config: StationConfig, clock: Clock) -> None:
        policy = config.policy
        self._clock = clock
        self._alarm_ns = nanoseconds(policy.starve_alarm_s)
        self._stop_s = policy.starve_stop_s
        self._first_s = max(FIRST_CHUNK_S, policy.hang_s)
        self._subscriber = Subscriber(config.paths.policy_pub, queue=2 * MAX_A_TICK, topic=CHUNKS)
        self._decoder = msgspec.msgpack.Decoder(Chunk)
        self._queue = ChunkQueue(policy.crossfade_s, policy.max_seam_deg, 1 / config.robot.control_hz)
        self._chunks = 0
        self._dropped: dict[str, int] = {}
        self._ticks = 0  # since the first action
        self._starved_ticks = 0
        self._starving_since_ns: int | None = None
        self._taken_ns = 0  # when the last chunk came,
        self._covered_ns = 0  # and for how long the schedule went on from there
        self._last: Execution | None = None  # of the task that ended

    def close(self) -> None:
        self._subscriber.close()

    # --- a task begins and ends ---

    def admit(self, generation: int) -> None:
        """Raises Refused for a generation that chunks of an earlier task could belong to."""
        if generation <= 0:
            raise Refused(f"There is no policy task to execute (generation {generation}).", "Start a task first.")
        if generation <= self._queue.highest:
            raise Refused(
                f"Generation {generation} is not larger than {self._queue.highest}, which the arm has seen.",
                "Every task needs a generation of its own.",
            )

    def begin(self, generation: int) -> None:
        """Take chunks of this generation from now on. Raises Refused like `admit`."""
        self.admit(generation)
        self._queue.reset(generation)
        self._chunks, self._ticks, self._starved_ticks = 0, 0, 0
        self._dropped = {}
        self._starving_since_ns = self._clock.now_ns()

    def end(self) -> None:
        """The arm does something else: whatever still comes for this task is dropped."""
        if self.generation:
            self._starving_since_ns = None
            self._last = self.report()
            self._queue.close()

    # --- each tick ---

    def receive(self) -> None:
        """Look at what has arrived, without waiting."""
        for parts in islice(self._subscriber.drain(), MAX_A_TICK):
            chunk = self._read(parts)
            reason = self._queue.offer(chunk) if chunk else NO_CHUNK
            if reason is Verdict.TAKEN:
                self._chunks += 1
                self._taken_ns, self._covered_ns = self._clock.now_ns(), self._queue.left_ns
                continue
            if reason not in self._dropped:  # the count is in every report; one line of each kind is enough
                logger.warning("chunk dropped", reason=str(reason), generation=self.generation)
            self._dropped[reason] = self._dropped.get(reason, 0) + 1

    def _read(self, parts: list[zmq.Frame]) -> Chunk | None:
        if len(parts) != 1 or len(parts[0]) > MAX_CHUNK_BYTES:
            return None
        try:
            return self._decoder.decode(parts[0].buffer)
        except UNREADABLE:
            return None

    def next(self, command: Joints) -> Joints | None:
        """The policy's pose for this tick; None while it starves. `command` is what was sent last."""
        now = self._clock.now_ns()
        pose = self._queue.at(now, command)
        if pose is None:
            self._starving_since_ns = self._starving_since_ns or now
        else:
            self._starving_since_ns = None
        if pose is not None or self._ticks:
            self._ticks += 1
            self._starved_ticks += pose is None
        return pose

    def overdue(self) -> str | None:
        """Why the task cannot go on, if it has starved for too long."""
        limit_s = self._stop_s if self._ticks else self._first_s
        if self._starving_ns() > nanoseconds(limit_s):
            what = "action" if self._ticks else "first action"
            return f"no {what} came from the policy for {limit_s:g} s; the task is stopped"
        # On a host where ticks come late plan time is slower than the clock, and what is left of a schedule would keep
        # the arm moving for long after the policy has died.
        silent_ns = self._clock.now_ns() - self._taken_ns
        if self._ticks and silent_ns > self._covered_ns + nanoseconds(self._stop_s + TICKS_LATE_S):
            return f"nothing came from the policy for {seconds(silent_ns):.1f} s; the task is stopped"
        return None

    # --- how it goes ---

    @property
    def generation(self) -> int:
        """Of the task that has the arm; 0 when none has."""
        return self._queue.generation

    @property
    def plan_ns(self) -> int | None:
        return self._queue.plan_ns if self.generation else None

    @property
    def starved(self) -> bool:
        """For so long that somebody should know. Waiting for the first chunk is not starving."""
        return self._ticks > 0 and self._starving_ns() > self._alarm_ns

    def _starving_ns(self) -> int:
        return self._clock.now_ns() - self._starving_since_ns if self._starving_since_ns else 0

    def report(self) -> Execution | None:
        """Of the present task, or of the last one."""
        if not self.generation:
            return msgspec.structs.replace(self._last, dropped=dict(self._dropped)) if self._last else None
        return Execution(
            generation=self.generation,
            chunks=self._chunks,
            dropped=dict(self._dropped),
            depth=self._queue.depth,
            ticks=self._ticks,
            starved_ticks=self._starved_ticks,
            starving_s=seconds(self._starving_ns()),
            starved=self.starved,
            seam=self._queue.seam,
            seam_max=self._queue.seam_max,
        )
