"""Keeps the children of a station alive: forks them from nurseries, notices deaths and hangs, backs off.

A child that dies is started again at once, and then ever more slowly. One that keeps dying is given up
and reported; the rest goes on. One that the arm does not depend on is reported too, but tried again for ever.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agent.clock import Clock, nanoseconds
from agent.config import StationConfig
from agent.errors import Exit, Transient
from agent.nursery import MAX_REQUEST_BYTES
from agent.telemetry import logger

BACKOFF_S: Final = (0.0, 0.2, 1.0, 2.0, 5.0, 10.0)
"""Waits before the first, second, ... restart in a row. The first is immediate: the arm must be back
within 1.5 s; the last is slow enough not to fill a log overnight."""

CRASH_WINDOW_S: Final = 60.0
CRASHES_TO_GIVE_UP: Final = 5
"""Five crashes a minute are not bad luck."""

STABLE_S: Final = 20.0
"""A child that lived this long starts its back-off anew."""

RETRY_S: Final = 60.0
"""Between two tries of a child that the arm does not depend on and that keeps dying: what it lacks may come back while
nobody is there to ask for another try."""

NURSERY_READY_S: Final = 30.0
"""For how long a nursery waits for the one before it. One that cannot be imported must not keep away the page that
would say so."""

NURSERY_ENDS_TO_REPORT: Final = 2
"""A nursery that ends this often in a row cannot do its imports; a person must look."""

LOOK_S: Final = 0.25
"""How often children are looked at for silence."""

TERMINATE_S: Final = 3.0
"""From SIGTERM to SIGKILL at shutdown: lerobot's cameras may take 4 s to disconnect, and need not."""


@dataclass(frozen=True)
class ChildSpec:
    """One child process. `silence_s` is how long it may publish nothing before it counts as hung."""

    name: str
    entry: str  # "package.module:function", called with (config, **kwargs)
    nursery: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    silence_s: float = 5.0
    first_silence_s: float = 20.0  # until its first sign of life
    orphan_stays: bool = False  # keeps running when the supervisor dies
    vital: bool = True  # False: the arm can be used without it


@dataclass
class ChildState:
    spec: ChildSpec
    pid: int | None = None
    started_ns: int = 0
    heard_ns: int | None = None
    restarts: int = 0
    streak: int = 0
    crashes: deque[int] = field(default_factory=deque)
    failed: str | None = None  # why it was given up; one that is not vital is tried again now and then
    last_exit: str | None = None


class NurseryGone(Transient):
    """The nursery ended before it had forked the child; its successor will."""


class Nursery:
    """The supervisor's end of one `agent.nursery` process.

    With a `trunk` it is forked from that nursery, whose imports it has then already, and shares.
    """

    def __init__(self, name: str, preload: Sequence[str], trunk: "Nursery | None" = None) -> None:
        self.name = name
        self._preload = list(preload)
        self._trunk = trunk
        self._process: asyncio.subprocess.Process | None = None
        self._peer: socket.socket | None = None
        self._spawned: dict[str, asyncio.Future[int]] = {}
        self.pid: int | None = None
        self.ready = asyncio.Event()

    async def run(self, on_exit: Callable[[int, int], None]) -> None:
        """Start the nursery and pass on its children's exits, until it ends itself."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._peer = ours
        with contextlib.closing(ours):
            with contextlib.closing(theirs):
                self.pid = await self._begin(theirs)
            loop = asyncio.get_running_loop()
            while packet := await loop.sock_recv(ours, MAX_REQUEST_BYTES):
                match json.loads(packet):
                    case {"event": "ready"}:
                        self.ready.set()
                    case {"event": "spawned", "name": name, "pid": pid}:
                        self._spawned.pop(name).set_result(pid)
                    case {"event": "exit", "pid": pid, "status": status}:
                        on_exit(pid, status)
        self.ready.clear()
        self._peer, self.pid = None, None
        for future in self._spawned.values():
            future.set_exception(NurseryGone(f"The nursery {self.name} ended."))
        self._spawned.clear()
        if self._process:
            await self._process.wait()

    async def _begin(self, theirs: socket.socket) -> int:
        fd = theirs.fileno()
        if self._trunk is not None:
            return await self._trunk._request({"op": "branch", "name": self.name, "modules": self._preload}, fd)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agent.nursery", str(fd), *self._preload, pass_fds=(fd,)
        )
        return self._process.pid

    async def spawn(self, spec: ChildSpec, config: dict[str, Any]) -> int:
        """Fork a child; returns its pid."""
        return await self._request(
            {
                "op": "spawn",
                "name": spec.name,
                "entry": spec.entry,
                "config": config,
                "kwargs": spec.kwargs,
                "orphan_stays": spec.orphan_stays,
            }
        )

    async def _request(self, request: dict[str, Any], *fds: int) -> int:
        await self.ready.wait()
        assert self._peer is not None  # noqa: S101 - set before `ready` can be
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._spawned[request["name"]] = future
        try:
            # A few kilobytes into the empty buffer of a process that does nothing but wait for them.
            socket.send_fds(self._peer, [json.dumps(request).encode()], fds)
        except OSError as error:
            self._spawned.pop(request["name"], None)
            raise NurseryGone(f"The nursery {self.name} ended.") from error
        return await future

    async def close(self) -> None:
        """End the process: it leaves when its socket does. Killed when it is still importing."""
        if self._peer is not None:
            with contextlib.suppress(OSError):  # it has ended already
                self._peer.shutdown(socket.SHUT_RDWR)
        if not self.ready.is_set():
            _signal(self.pid, signal.SIGKILL)
        if self._process:
            await self._process.wait()


class Supervisor:
    """Starts, watches and restarts the children of one station."""

    def __init__(
        self,
        config: StationConfig,
        specs: Sequence[ChildSpec],
        clock: Clock,
        on_down: Callable[[str, str], None],
        on_failed: Callable[[str, str], None],
    ) -> None:
        """`on_down(name, why)` is called at every unexpected end, `on_failed` when a child is given up."""
        self._config = config.model_dump(mode="json")
        self._clock = clock
        self._on_down = on_down
        self._on_failed = on_failed
        self.children = {spec.name: ChildState(spec) for spec in specs}
        preload: dict[str, list[str]] = {}
        for spec in specs:
            preload.setdefault(spec.nursery, []).append(spec.entry.partition(":")[0])
        self._nurseries: dict[str, Nursery] = {}
        for name, modules in preload.items():
            trunk = next(iter(self._nurseries.values()), None)
            self._nurseries[name] = Nursery(name, sorted(set(modules)), trunk)
        self._ended: dict[str, asyncio.Event] = {spec.name: asyncio.Event() for spec in specs}
        self._retry: dict[str, asyncio.Event] = {spec.name: asyncio.Event() for spec in specs}
        self._stopping = False

    async def run(self, before_spawn: Callable[[ChildSpec], Any] | None = None) -> None:
        """Keep everything running until cancelled. `before_spawn` may be a coroutine function."""
        async with asyncio.TaskGroup() as group:
            for nursery in self._nurseries.values():
                group.create_task(self._keep_nursery(nursery), name=f"nursery {nursery.name}")
                # One after the other, the first is the trunk of the others: the arm is under control seconds sooner
                # when the recorder's imports do not compete with the arm's, and torch is imported once.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(nursery.ready.wait(), NURSERY_READY_S)
                for child in self.children.values():
                    if child.spec.nursery == nursery.name:
                        group.create_task(self._keep_child(child, before_spawn), name=f"child {child.spec.name}")

    def heard(self, name: str) -> None:
        """`name` gave a sign of life."""
        child = self.children[name]
        child.heard_ns = self._clock.now_ns()

    def failed(self) -> str | None:
        """Why the arm cannot be used: a child that it depends on was given up."""
        return next((child.failed for child in self.children.values() if child.failed and child.spec.vital), None)

    def is_vital(self, name: str) -> bool:
        """Of a child, or of a nursery: whether one of its children is."""
        return any(
            child.spec.vital for child in self.children.values() if name in (child.spec.name, child.spec.nursery)
        )

    def retry_failed(self) -> None:
        """Try given-up children again; a person asked for it."""
        for child in self.children.values():
            if child.failed:
                child.failed = None
                child.crashes.clear()
                child.streak = 0
                self._retry[child.spec.name].set()

    async def close(self) -> None:
        """End all children that still run, then the nurseries. Polite first, SIGKILL after TERMINATE_S."""
        self._stopping = True
        running = [child for child in self.children.values() if child.pid is not None]
        for child in running:
            _signal(child.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TERMINATE_S):
                await asyncio.gather(*(self._ended[child.spec.name].wait() for child in running))
        for child in running:
            if child.pid is not None:
                logger.warning("child did not end in time, killed", child=child.spec.name, pid=child.pid)
                _signal(child.pid, signal.SIGKILL)
        for nursery in self._nurseries.values():
            await nursery.close()

    def expect_exit(self) -> None:
        """From now on exits are wanted and nothing is restarted."""
        self._stopping = True

    async def wait_ended(self, name: str, timeout_s: float) -> bool:
        """Whether the child was gone within `timeout_s`."""
        if self.children[name].pid is None:
            return True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended[name].wait(), timeout_s)
        return self.children[name].pid is None

    async def _keep_nursery(self, nursery: Nursery) -> None:
        streak = 0
        while True:
            started_ns = self._clock.now_ns()
            with contextlib.suppress(NurseryGone):  # the trunk ended before it had forked this branch
                await nursery.run(self._exited)
            # Its children are no longer ours to reap: count them as gone, so that they are replaced.
            for child in self.children.values():
                if child.spec.nursery == nursery.name and child.pid is not None:
                    self._exited(child.pid, -signal.SIGHUP)
            if self._stopping:
                return
            alive_ns = self._clock.now_ns() - started_ns
            streak = 0 if alive_ns > nanoseconds(STABLE_S) else streak + 1
            logger.error("nursery ended, starting it again", nursery=nursery.name, streak=streak)
            if streak == NURSERY_ENDS_TO_REPORT:
                why = f"the {nursery.name} cannot be started; the log shows why"
                for child in self.children.values():
                    if child.spec.nursery == nursery.name and not child.spec.vital:
                        child.failed = why
                self._on_failed(nursery.name, why)
            await asyncio.sleep(BACKOFF_S[min(streak, len(BACKOFF_S) - 1)])

    async def _keep_child(self, child: ChildState, before_spawn: Callable[[ChildSpec], Any] | None) -> None:
        nursery = self._nurseries[child.spec.nursery]
        ended = self._ended[child.spec.name]
        told = False
        while not self._stopping:
            if before_spawn is not None:
                await before_spawn(child.spec)
            ended.clear()
            child.heard_ns = None
            try:
                child.pid = await nursery.spawn(child.spec, self._config)
            except NurseryGone:
                continue  # the next spawn waits for its successor
            child.started_ns = self._clock.now_ns()
            logger.info("child started", child=child.spec.name, pid=child.pid, restarts=child.restarts)
            await self._until_ended(child, ended)
            if self._stopping:
                return
            child.restarts += 1
            why = child.last_exit or "ended"
            self._on_down(child.spec.name, why)
            told = told and child.failed is not None  # it may have been well for a while
            if child.failed:
                if not told:
                    self._on_failed(child.spec.name, child.failed)
                told = True
                retry = self._retry[child.spec.name]
                retry.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(retry.wait(), None if child.spec.vital else RETRY_S)
            else:
                await asyncio.sleep(BACKOFF_S[min(child.streak, len(BACKOFF_S)) - 1])

    async def _until_ended(self, child: ChildState, ended: asyncio.Event) -> None:
        looked_ns = self._clock.now_ns()
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), LOOK_S)
            if child.pid is None:
                return
            before_ns, looked_ns = looked_ns, self._clock.now_ns()
            now = looked_ns
            if child.failed and now - child.started_ns > nanoseconds(STABLE_S):
                child.failed = None  # what kept it from running is gone
                child.crashes.clear()
            if now - before_ns > nanoseconds(2 * LOOK_S) and child.heard_ns is not None:
                # This process was stopped or starved: the child may have spoken all the while.
                child.heard_ns = now
            since_ns = child.heard_ns if child.heard_ns is not None else child.started_ns
            allowed_s = child.spec.silence_s if child.heard_ns is not None else child.spec.first_silence_s
            if now - since_ns > nanoseconds(allowed_s):
                logger.error("child hangs, killing it", child=child.spec.name, pid=child.pid, silent_s=allowed_s)
                child.heard_ns = now  # once is enough; the exit follows
                child.last_exit = f"hung for {allowed_s:g} s and was killed"
                _signal(child.pid, signal.SIGKILL)

    def _exited(self, pid: int, status: int) -> None:
        child = next((child for child in self.children.values() if child.pid == pid), None)
        if child is None:
            return
        now = self._clock.now_ns()
        child.pid = None
        hung = child.last_exit if child.last_exit and child.last_exit.startswith("hung") else None
        child.last_exit = hung or _describe(status)
        lived_ns = now - child.started_ns
        child.streak = 1 if lived_ns > nanoseconds(STABLE_S) else child.streak + 1
        if status not in (0, Exit.DEVICE_FAULT):
            # A device that is not there is waited for; only crashes count towards giving up.
            child.crashes.append(now)
            while child.crashes and now - child.crashes[0] > nanoseconds(CRASH_WINDOW_S):
                child.crashes.popleft()
            if len(child.crashes) >= CRASHES_TO_GIVE_UP:
                child.failed = (
                    f"{child.spec.name} died {len(child.crashes)} times within {CRASH_WINDOW_S:g} s "
                    f"(last: {child.last_exit})"
                )
        if not self._stopping:
            logger.warning("child ended", child=child.spec.name, pid=pid, how=child.last_exit)
        self._ended[child.spec.name].set()


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"killed by {signal.Signals(-status).name}"


def _signal(pid: int | None, number: signal.Signals) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
