"""Everything that moves the arm because somebody asked for it: one at a time, and only while they have control."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from agent import requests
from agent.background import Background
from agent.clock import Clock
from agent.config import StationConfig
from agent.errors import AgentError, Refused
from agent.events import EventKind, EventLog
from agent.lease import Leases
from agent.links import Links
from agent.messages import ArmDrive, ArmEstop, Drive, EpisodeSource, Tick
from agent.modes import GUARDED, MOVING, RECORDABLE, WHAT_TO_DO, Mode, ModeMachine
from agent.recordings import Recordings
from agent.requests import Request
from agent.session import Plan
from agent.task import Task, TaskPlan, TaskState, load, require_idle_hands
from agent.telemetry import logger

HOLD_AGAIN_S: Final = 0.1
"""Between two tries to hold an arm process that does not answer. It holds by itself when it lost its supervisor."""


class Motion:
    """The task under way, who has control, and the verbs that move the arm or stop it."""

    def __init__(
        self,
        config: StationConfig,
        clock: Clock,
        machine: ModeMachine,
        links: Links,
        recordings: Recordings,
        events: EventLog,
        background: Background,
        on_judged: Callable[[str, bool], None],
    ) -> None:
        """`on_judged(policy, success)` is called when a person judges a task."""
        self.task: Task | None = None
        self.last_task: dict[str, Any] | None = None
        self.loading: TaskPlan | None = None  # what will begin when its policy is ready
        self.alone = asyncio.Lock()  # held while something is asked of the arm that must not be asked beside another
        self.leases = Leases(clock, self._tell_of_lease, lambda _: self.hold_orphan())
        self._config = config
        self._clock = clock
        self._machine = machine
        self._links = links
        self._recordings = recordings
        self._events = events
        self._background = background
        self._on_judged = on_judged
        self._holding_orphan = False

    def mode(self) -> dict[str, Any]:
        return {"mode": self._machine.mode, "reason": self._machine.reason}

    # --- who has control ---

    @contextlib.asynccontextmanager
    async def _commanding(self, request: Request, begins: bool = False, stops: bool = False) -> AsyncIterator[None]:
        """While this request commands the arm. With `begins` motion begins, which ends with the request's lease; with
        `stops` it ends, which anybody may ask for.

        This machine's operator ends a lease. Whoever is at a distance must still have it: they may have waited.
        """
        before = self.leases.moves
        if not request.remote:
            self.leases.begin(None)
            self.leases.end("the operator at the station took over")
        elif not stops:
            lease = self.leases.require(request.token)
            if begins:
                self.leases.begin(lease.token)
        try:
            yield
        except BaseException:
            self.leases.begin(before)
            raise
        finally:
            self.hold_orphan()

    async def take_lease(self, request: Request) -> dict[str, Any]:
        owner, ttl_s, take_over = requests.lease(request.args)
        lease = self.leases.take(owner, ttl_s, request.via, take_over)
        return {"token": lease.token, "owner": lease.owner, "ttl_s": lease.ttl_s}

    async def renew_lease(self, request: Request) -> dict[str, Any]:
        lease = self.leases.renew(requests.token(request.args))
        return {"owner": lease.owner, "ttl_s": lease.ttl_s, **self.mode()}

    async def release_lease(self, request: Request) -> dict[str, Any]:
        self.leases.release(requests.token(request.args))
        return self.mode()

    def _tell_of_lease(self, text: str, data: dict[str, Any]) -> None:
        logger.info("lease", **data)
        self._events.publish(EventKind.LEASE, text, **data)

    def hold_orphan(self) -> None:
        """Hold the arm when it moves for somebody who has no control any more. Waits for nobody, like an e-stop."""
        if self._machine.mode in GUARDED and self.leases.orphaned and not self._holding_orphan:
            self._holding_orphan = True
            self._background.start(self._hold_until_held())

    async def _hold_until_held(self) -> None:
        try:
            while self._machine.mode in GUARDED and (cause := self.leases.orphaned):
                with contextlib.suppress(AgentError):  # an arm process that is being restarted holds by itself
                    await self._links.ask_arm(ArmDrive(Drive.HOLD, cause))
                    continue
                await asyncio.sleep(HOLD_AGAIN_S)
        finally:
            self._holding_orphan = False

    def mode_changed(self, before: Mode, after: Mode) -> None:
        if after in GUARDED:
            self.hold_orphan()  # what was asked for in time may begin too late
        elif before in GUARDED:
            self.leases.begin(None)

    # --- teleop ---

    async def start_teleop(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        if self._config.robot.leader is None:
            raise Refused("This station has no leader arm.", "Add robot.leader to the configuration.")
        async with self.alone:
            under_way = self._machine.mode in (Mode.TELEOP, Mode.ALIGNING)
            async with self._commanding(request, begins=not under_way):
                if under_way:
                    return self.mode()
                if self.task:
                    await self._give_to_the_leader(self.task, "teleop was started")
                    return self.mode()
                return await self._drive(Drive.ALIGN, Mode.ALIGNING, "teleop was started")

    async def stop_teleop(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        if self._machine.mode not in (Mode.TELEOP, Mode.ALIGNING):
            raise Refused(
                f"Teleop is not running: the station is in mode {self._machine.mode}.", WHAT_TO_DO[self._machine.mode]
            )
        if self.task:
            async with self.alone, self._commanding(request, begins=not self.task.plan.unattended):
                await self.task.run()
                self._tell_of_task(self.task, f"Task {self.task.plan.text!r} goes on")
                return self.mode()
        return await self._stop_moving(request, "teleop was stopped")

    async def _drive(self, drive: Drive, mode: Mode, cause: str) -> dict[str, Any]:
        self._machine.require(mode)
        await self._links.ask_arm(ArmDrive(drive, cause))
        return self.mode()

    # --- tasks ---

    def ticked(self, tick: Tick) -> None:
        if self.task and self.task.taken_by(tick):
            self._background.start(self._take_over("the leader was moved"))

    def look_at_the_clock(self) -> None:
        """End a task whose time is up."""
        if self.task and self.task.due:
            self._background.start(self.end_task("its time is over"))

    def policy_ended(self, why: str) -> None:
        if self.task and self.task.state is TaskState.RUNNING:
            self._background.start(self.end_task(f"the policy process ended ({why})"))

    def of_the_task(self) -> frozenset[Mode]:
        """The modes that the task under way may be in; in any other it is over."""
        taken_over = self.task is not None and self.task.state is TaskState.TAKEN_OVER
        return GUARDED if taken_over else frozenset({Mode.EXECUTING})

    async def _take_over(self, cause: str) -> None:
        async with self.alone:
            if self.task and self.task.state is TaskState.RUNNING and self._machine.mode is Mode.EXECUTING:
                with contextlib.suppress(AgentError):  # e.g. no leader reading: the task goes on
                    await self._give_to_the_leader(self.task, cause)

    async def _give_to_the_leader(self, task: Task, cause: str) -> None:
        before, task.state = task.state, TaskState.TAKEN_OVER  # first: the arm's answer changes the mode
        try:
            await task.take_over(cause)
        except AgentError:
            task.state = before
            raise
        self._tell_of_task(task, f"A person took over {task.plan.text!r}: {cause}")

    async def start_task(self, request: Request) -> dict[str, Any]:
        wanted = requests.task(request.args, self._config)
        self._require_task_possible()
        await self._load(wanted, request)  # not behind the lock: a person may want the arm meanwhile
        async with self.alone:
            self._require_task_possible()
            async with self._commanding(request, begins=not wanted.unattended):
                return await self._begin_task(wanted)

    async def _load(self, wanted: TaskPlan, request: Request) -> None:
        self.loading = wanted
        self._events.publish(
            EventKind.TASK, f"Task {wanted.text!r} waits for the policy {wanted.policy}", task=wanted.text,
            policy=wanted.policy, state="loading",
        )  # fmt: skip
        try:
            await load(wanted.policy, self._links, request.progress)
        except BaseException as error:
            self._events.publish(
                EventKind.TASK, f"Task {wanted.text!r} did not begin: {error}", task=wanted.text,
                policy=wanted.policy, state="not begun",
            )  # fmt: skip
            raise
        finally:
            if self.loading is wanted:
                self.loading = None

    async def _begin_task(self, wanted: TaskPlan) -> dict[str, Any]:
        task = self.task = Task(wanted, self._links, self._config, self._clock)
        try:
            await task.run()
            if wanted.record:
                longest = self._config.recording.max_episode_s
                await self._recordings.begin(
                    Plan(wanted.text, 1, wanted.duration_s or longest, 0.0, EpisodeSource.POLICY)
                )
        except AgentError:
            self.task = None
            if self._machine.mode is Mode.EXECUTING:
                await task.hold("the task could not be started")
            raise
        if task.over:  # while the recorder began
            await self._recordings.end(task.over)
        self._tell_of_task(task, f"Task {wanted.text!r} began with the policy {wanted.policy}")
        return {**self.mode(), "task": task.status()}

    def _require_task_possible(self) -> None:
        if self.task:
            raise Refused(f"The task {self.task.plan.text!r} is under way.", "Run `so-agent task stop` first.")
        require_idle_hands(self._machine.mode)
        self._machine.require(Mode.EXECUTING)

    async def stop_task(self, request: Request) -> dict[str, Any]:
        success = requests.success(request.args)
        requests.only(request.args)
        if self.task is None:
            raise Refused("No task is under way.", 'Start one with `so-agent task start --task "..."`.')
        policy = self.task.plan.policy
        async with self._commanding(request, stops=True):
            await self.end_task("task stop was asked for", success)
        if success is not None:
            self._on_judged(policy, success)
        return {**self.mode(), "task": self.last_task}

    async def end_task(self, cause: str, success: bool | None = None) -> None:
        """Hold where it is, keep what was recorded."""
        task = self.task
        if task is None or task.over:
            return
        task.over = cause  # first: the arm's answer changes the mode, and that would end the task too
        if self._machine.mode in self.of_the_task():
            with contextlib.suppress(AgentError):  # an arm that does not answer holds by itself
                await task.hold(cause)
        self.task, self.last_task = None, {**task.status(), "over": cause}
        self._tell_of_task(task, f"Task {task.plan.text!r} is over: {cause}")
        self._background.start(task.silence(cause))  # not waited for: the arm takes nothing of it any more
        await self._recordings.end(cause, success)

    def _tell_of_task(self, task: Task, text: str) -> None:
        self._events.publish(EventKind.TASK, text, over=task.over, **task.status())

    # --- recording rides on motion ---

    async def start_recording(self, request: Request) -> dict[str, Any]:
        wait = bool(request.args.pop("wait", False))
        wanted = requests.recording(request.args, self._config)
        async with self.alone:
            if self._machine.mode not in RECORDABLE:
                raise Refused(
                    f"Recording needs a moving arm; the station is in mode {self._machine.mode}.",
                    WHAT_TO_DO[self._machine.mode],
                )
            session = await self._recordings.begin(wanted)
        return await self._recordings.follow(session, request) if wait else {"recording": session.status()}

    # --- stopping ---

    async def hold(self, request: Request) -> dict[str, Any]:
        return await self._stop_moving(request, "hold was asked for")

    async def _stop_moving(self, request: Request, cause: str) -> dict[str, Any]:
        requests.only(request.args)
        if self.alone.locked() and self._machine.mode in MOVING:
            # Whatever is under way may take seconds, and the arm must not move for as long.
            await self._links.ask_arm(ArmDrive(Drive.HOLD, cause))
        async with self.alone, self._commanding(request, stops=True):
            if self._machine.mode is not Mode.HOLD:
                await self._drive(Drive.HOLD, Mode.HOLD, cause)
            await self.end_task(cause)
            await self._recordings.end(cause)
            return self.mode()

    async def park(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        async with self.alone, self._commanding(request):
            if self._machine.mode in GUARDED:
                await self._drive(Drive.HOLD, Mode.HOLD, "park was asked for")
                await self.end_task("park was asked for")
                await self._recordings.end("park was asked for")
            return await self._drive(Drive.PARK, Mode.HOMING, "park was asked for")

    async def release(self, request: Request) -> dict[str, Any]:
        """Torque off wherever the arm is. Allowed in every mode: a person can always release the arm."""
        requests.only(request.args)
        async with self._commanding(request):
            report = await self._links.ask_arm(ArmDrive(Drive.LIMP, "release was asked for"))
            return {**self.mode(), "torque_on": report.torque_on}

    async def estop(self, request: Request) -> dict[str, Any]:
        cause = str(request.args.get("cause", "e-stop was pressed"))[:200]
        # Not behind the lock: an e-stop waits for nobody.
        report = await self._links.ask_arm(ArmEstop(cause))
        return {**self.mode(), "verified": report.estop_verified}
