"""One task from the policy's side: observe, predict in the background, send the chunk; over and over.

Predictions do not wait for each other: the next begins `replan_s` after the last one began, or when that is done. What
is on its way meanwhile guides the next chunk (real-time chunking), from a mirror of the arm's own schedule.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final

import numpy as np

from agent.clock import NS_PER_S, Clock, nanoseconds, seconds
from agent.config import StationConfig
from agent.errors import AgentError
from agent.inference.delay import DelayWindow
from agent.inference.engine import Actions, Engine, Guidance, Observation
from agent.inference.observer import Observer
from agent.inference.queue import ChunkQueue
from agent.messages import Joints, Tick
from agent.policy_messages import Chunk
from agent.telemetry import logger

GUIDED_HORIZON: Final = 0.1
"""How far into the chunk the old one reaches: this share of it beyond the delay, fading. RTC's authors go further.
What is new is seen that much later. With the demo policy, a disc that jumps and predictions of 0.45 s, touches a minute
and jerk in deg/s3: 0: 31 and 82,000; 0.1: 29 and 67,000; 0.2: 20 and 52,000; 0.5: 13 and 34,000."""


@dataclass(frozen=True)
class _Pending:
    """A prediction under way."""

    observed_ns: int
    start_ns: int  # plan time of the chunk's first action
    begun_ns: int
    result: Future[tuple[Actions, int]]  # and how long it took


class Run:
    """Sends chunks for one task until it is dropped. Owned by the policy process's main thread."""

    def __init__(
        self,
        config: StationConfig,
        clock: Clock,
        engine: Engine,
        policy: str,
        task: str,
        generation: int,
        worker: Executor,
        send: Callable[[Chunk], None],
        delays: DelayWindow,
    ) -> None:
        """`policy` names the bundle and its hash in every chunk. `delays` live as long as the engine does."""
        self.task, self.generation = task, generation
        self.chunks = 0
        self.failures = 0
        self.inference_s: float | None = None  # of the last prediction
        self.reason = "waiting for the arm"
        self._settings = config.policy
        self._clock = clock
        self._engine = engine
        self._traits = engine.traits
        self._policy = policy
        self._worker = worker
        self._send = send
        self._observer = Observer(config, clock, self._traits.cameras)
        self._observer.begin(generation)
        self._mirror = ChunkQueue(self._settings.crossfade_s, self._settings.max_seam_deg, 1 / config.robot.control_hz)
        self._mirror.reset(generation)
        self._guided = self._traits.guided and self._settings.merge != "crossfade"
        self._pending: _Pending | None = None
        self._begun_ns = 0
        self._used_ns = 0  # the tick that the last prediction was made from
        self._delays = delays

    @property
    def thinking_s(self) -> float:
        """How long the prediction under way has taken so far."""
        return seconds(self._clock.now_ns() - self._pending.begun_ns) if self._pending else 0.0

    def turn(self, timeout_s: float) -> None:
        """Wait for news at most this long, and do what they call for."""
        self._observer.wait(timeout_s)
        for tick in self._observer.hear():
            self._follow(tick)
        if self._pending and self._pending.result.done():
            self._finish(self._pending)
            self._pending = None
        if self._pending is None:
            self._begin()

    def close(self) -> None:
        """Stop observing. A prediction under way is not sent any more."""
        self._observer.close()
        if self._pending:
            self._pending.result.cancel()

    # --- one chunk ---

    def _follow(self, tick: Tick) -> None:
        held = tick.sent or tick.measured
        if tick.plan_ns is not None and held is not None:
            self._mirror.follow(tick.plan_ns, held)

    def _begin(self) -> None:
        if self._clock.now_ns() - self._begun_ns < nanoseconds(self._settings.replan_s):
            return
        if self._better_wait():
            return
        if reason := self._observer.blind():
            self._say(reason)
            return
        tick = self._observer.tick
        if tick is None or tick.measured is None or tick.plan_ns is None or tick.read_ns == self._used_ns:
            return
        self._used_ns = tick.read_ns
        start_ns, joints = self._conditioned(tick.plan_ns, tick.measured)
        observation = Observation(joints, self._observer.images(), self.task)
        guidance = self._guidance(start_ns, rolled=start_ns != tick.plan_ns)
        self._begun_ns = self._clock.now_ns()
        result = self._worker.submit(self._predict, observation, guidance)
        self._pending = _Pending(tick.read_ns, start_ns, self._begun_ns, result)

    def _predict(self, observation: Observation, guidance: Guidance | None) -> tuple[Actions, int]:
        begun_ns = self._clock.now_ns()
        actions = self._engine.predict(observation, guidance)
        time.sleep(self._settings.extra_delay_s)  # experiments on latency: as if the model were larger
        return actions, self._clock.now_ns() - begun_ns

    def _finish(self, pending: _Pending) -> None:
        try:
            actions, took_ns = pending.result.result()
        except AgentError as error:
            self.failures += 1
            logger.warning("prediction failed", reason=str(error), failures=self.failures)
            self.reason = str(error)
            return
        chunk = Chunk(
            generation=self.generation,
            seq=self.chunks,
            start_ns=pending.start_ns,
            period_ns=self._traits.period_ns,
            actions=tuple(_joints(action) for action in actions.tolist()),
            policy=self._policy,
            observed_ns=pending.observed_ns,
        )
        self._send(chunk)
        self._mirror.offer(chunk)
        self.chunks += 1
        self._delays.add(seconds(self._clock.now_ns() - pending.observed_ns))
        self.inference_s = seconds(took_ns)
        self._say("running")

    def _better_wait(self) -> bool:
        """Whether to observe only when all actions have run.

        Predictions that take longer (L) than their chunk covers (H) would waste every second chunk if they were begun
        while the arm moves: starved 1 - (H / 2) / L of the time. One after the other it is L / (L + H), which is less.
        """
        slow = (self._delays.p50_s or 0.0) > seconds(self._traits.chunk_size * self._traits.period_ns)
        return (slow or self._settings.synchronous) and not self._mirror.starved

    # --- what is on its way ---

    def _delay_ticks(self) -> int:
        """How many actions will have run when a chunk that is begun now arrives; a high percentile."""
        delay_s = self._delays.p95_s
        return math.ceil(delay_s * NS_PER_S / self._traits.period_ns) if delay_s else 0

    def _conditioned(self, plan_ns: int, measured: Joints) -> tuple[int, Joints]:
        """Where the chunk begins, and the joints that the policy is told.

        Rolled forward: the pose that the committed actions lead to by the time the chunk arrives, if they reach so far.
        """
        if self._settings.roll_forward and (ticks := self._delay_ticks()):
            start_ns = plan_ns + ticks * self._traits.period_ns
            if coming := self._mirror.ahead(start_ns, 1):
                return start_ns, coming[0]
        return plan_ns, measured

    def _guidance(self, start_ns: int, *, rolled: bool) -> Guidance | None:
        if not self._guided:
            return None
        coming = self._mirror.ahead(start_ns, self._traits.chunk_size)
        if not coming:
            return None
        delay = 0 if rolled else min(self._delay_ticks(), len(coming))
        horizon = min(len(coming), delay + round(GUIDED_HORIZON * self._traits.chunk_size))
        return Guidance(np.array(coming, np.float32), delay, horizon)

    def _say(self, reason: str) -> None:
        if reason != self.reason:
            logger.info("task", state=reason, task=self.task, generation=self.generation)
            self.reason = reason


def _joints(values: list[float]) -> Joints:
    a, b, c, d, e, f = values
    return a, b, c, d, e, f
