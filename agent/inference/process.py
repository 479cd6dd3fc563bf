"""The policy process: keeps one policy loaded and warm, and sends chunks while a task runs.

Two threads matter: the main one hears commands, ticks and frames and never waits; a worker loads and predicts.
A prediction that hangs cannot be interrupted, so the process ends itself, and the supervisor starts another one.
"""

import ctypes
import gc
import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from agent.clock import Clock, SystemClock, nanoseconds
from agent.config import StationConfig
from agent.errors import AgentError, Refused
from agent.inference.bundle import Bundle
from agent.inference.delay import DelayWindow
from agent.inference.engine import Engine
from agent.inference.library import Library
from agent.inference.observer import require_views
from agent.inference.run import Run
from agent.inference.verdict import verdict
from agent.messages import Problem
from agent.policy_messages import (
    LoadPolicy,
    PolicyCommand,
    PolicyQuery,
    PolicyReport,
    PolicyShutdown,
    PolicyState,
    StartTask,
    StopTask,
    UnloadPolicy,
)
from agent.priority import yield_to_others
from agent.telemetry import logger
from agent.transport import CommandServer, Publisher

REPORT_S: Final = 0.5

TURN_S: Final = 0.02
"""How long a turn waits for ticks and frames; a command waits at most as long."""

IDLE_S: Final = 0.1

NICENESS: Final = 5
"""Predictions are patient: what they need less than the control loop and the recorder is this much."""

HUNG: Final = 70
"""Exit status of a process that gave itself up (EX_SOFTWARE of sysexits.h)."""


def main(config: StationConfig) -> None:
    """Run the policy process until PolicyShutdown or SIGTERM."""
    yield_to_others(NICENESS)
    config.paths.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    PolicyProcess(config, SystemClock()).run()


class PolicyProcess:
    """State of the process; everything but loading and predicting runs in one thread."""

    def __init__(self, config: StationConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._server: CommandServer[PolicyCommand] = CommandServer(config.paths.policy_ctl, PolicyCommand)
        self._publisher = Publisher(config.paths.policy_pub)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._loading: Future[tuple[Bundle, Engine]] | None = None
        self._wanted: str | None = None  # the name of the policy that is or will be loaded
        self._bundle: Bundle | None = None
        self._engine: Engine | None = None
        self._delays = DelayWindow()
        self._run: Run | None = None
        self._last: Run | None = None  # the run before, whose figures stay in the report
        self._reason = "no policy is loaded"
        self._leaving = False
        self._reported: tuple[object, ...] = ()
        self._reported_ns = 0

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._on_signal)
        while not self._leaving:
            self._answer(0.0 if self._run else IDLE_S)
            self._mind_loading()
            if self._run:
                self._run.turn(TURN_S)
                self._mind_hang(self._run)
            self._report_if_due()
        self._stop("the process leaves")
        # Not waited for: what a prediction under way says is of no use to anybody now.
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._server.close()
        self._publisher.close()

    def _on_signal(self, *_: object) -> None:
        self._leaving = True

    # --- commands ---

    def _answer(self, timeout_s: float) -> None:
        while received := self._server.receive(timeout_s):
            envelope, command = received
            try:
                self._obey(command)
            except AgentError as error:
                self._server.reply(envelope, Problem(error.code, error.message, error.hint))
            else:
                self._server.reply(envelope, self.report())
            timeout_s = 0.0

    def _obey(self, command: PolicyCommand) -> None:
        match command:
            case LoadPolicy(policy):
                self._load(policy)
            case StartTask(task, generation):
                self._start(task, generation)
            case StopTask(cause):
                self._stop(cause)
            case UnloadPolicy():
                self._unload()
            case PolicyQuery():
                pass
            case PolicyShutdown():
                self._leaving = True

    def _load(self, name: str) -> None:
        if name == self._wanted and (self._engine or self._loading):
            return
        if self._run:
            raise Refused(f"A task runs with the policy {self._wanted}.", "Run `so-agent task stop` first.")
        if self._loading:
            raise Refused(f"The policy {self._wanted} is still being loaded.", "Try again when it is ready.")
        self._unload()
        self._wanted, self._reason = name, f"loading {name}"
        self._delays.reset()
        self._loading = self._worker.submit(self._open, name)

    def _open(self, name: str) -> tuple[Bundle, Engine]:
        """In the worker: seconds for a small policy, minutes for a large one that is compared with the reference."""
        settings = self._config.policy
        paths = self._config.paths
        bundle = Library(paths.policies, paths.policy_in_use).open(name)
        require_views(self._config, bundle.manifest.cameras)
        if settings.remote:
            from agent.inference.remote import RemoteEngine
            from agent.inference.wire import Encoding

            return bundle, RemoteEngine(settings.remote, bundle, encoding=Encoding(settings.remote.pictures))
        from agent.inference.engines import load_engine

        return bundle, load_engine(bundle, settings, cache=paths.policy_cache / bundle.hash)

    def _mind_loading(self) -> None:
        if self._loading is None or not self._loading.done():
            return
        loading, self._loading = self._loading, None
        try:
            self._bundle, self._engine = loading.result()
        except Exception as error:  # noqa: BLE001 - lerobot's and torch's code: whatever it raises is the reason
            expected = isinstance(error, AgentError)
            reason = str(error) if expected else f"{type(error).__name__}: {error}"
            self._reason = f"{self._wanted} was not loaded: {reason}"
            logger.error("policy not loaded", reason=reason, exc_info=None if expected else error)
            return
        traits = self._engine.traits
        self._reason = "ready"
        logger.info(
            "policy loaded", policy=self._wanted, hash=self._bundle.hash, engine=traits.name, place=traits.place,
            deviation=traits.deviation, options=traits.options,
        )  # fmt: skip

    def _start(self, task: str, generation: int) -> None:
        if self._engine is None or self._bundle is None:
            raise Refused(f"No policy is ready: {self._reason}.", "Load one first.")
        if self._run:
            self._stop("another task starts")
        name = f"{self._bundle.manifest.name}@{self._bundle.hash}"
        self._run = Run(
            self._config, self._clock, self._engine, name, task, generation, self._worker, self._publisher.send,
            self._delays,
        )  # fmt: skip
        self._reason = "running"

    def _stop(self, cause: str) -> None:
        if self._run:
            self._run.close()
            self._last, self._run = self._run, None
            self._reason = f"ready; {cause}"

    def _unload(self) -> None:
        if self._run:
            raise Refused("A task runs.", "Run `so-agent task stop` first.")
        if self._loading:
            raise Refused(f"The policy {self._wanted} is still being loaded.", "Try again when it is ready.")
        if self._engine:
            self._worker.submit(self._engine.close).result()  # the thread that made it: a connection belongs to one
        self._engine, self._bundle, self._wanted, self._last = None, None, None, None
        self._reason = "no policy is loaded"
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory otherwise

    # --- watching ---

    def _mind_hang(self, run: Run) -> None:
        if run.thinking_s <= self._config.policy.hang_s:
            return
        self._reason = f"a prediction hangs for {run.thinking_s:.1f} s; the process is started again"
        logger.error("prediction hangs", seconds=run.thinking_s, task=run.task)
        self._publisher.send(self.report())
        os._exit(HUNG)  # a hung thread cannot be joined

    @property
    def _state(self) -> PolicyState:
        if self._loading:
            return PolicyState.LOADING
        if self._run:
            return PolicyState.RUNNING
        return PolicyState.READY if self._engine else PolicyState.EMPTY

    def _report_if_due(self) -> None:
        now_ns = self._clock.now_ns()
        state = (self._state, self._reason, self._run and self._run.reason)
        if state != self._reported or now_ns - self._reported_ns >= nanoseconds(REPORT_S):
            self._reported, self._reported_ns = state, now_ns
            self._publisher.send(self.report())

    def report(self) -> PolicyReport:
        run, traits = self._run or self._last, self._engine.traits if self._engine else None
        views = self._config.views()
        return PolicyReport(
            at_ns=self._clock.now_ns(),
            pid=os.getpid(),
            state=self._state,
            reason=self._run.reason if self._run else self._reason,
            policy=self._wanted,
            hash=self._bundle.hash if self._bundle else None,
            engine=f"{traits.name}, {traits.place}" if traits else None,
            deviation=traits.deviation if traits else None,
            options=traits.options if traits else (),
            cameras=tuple(views[view] for view in traits.cameras) if traits else (),
            task=self._run.task if self._run else None,
            generation=run.generation if run else 0,
            chunks=run.chunks if run else 0,
            failures=run.failures if run else 0,
            inference_s=run.inference_s if run else None,
            delay_p50_s=self._delays.p50_s,
            delay_p95_s=self._delays.p95_s,
            horizon_s=traits.chunk_size * traits.period_ns / 1e9 if traits else None,
            verdict=verdict(traits, self._delays.p95_s) if traits else "",
        )
