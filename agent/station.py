"""The station: one owner of the mode, of the children, and of everything a person may ask for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec

from agent import __version__, requests, status
from agent.clock import Clock, nanoseconds, seconds
from agent.config import Paths, StationConfig
from agent.errors import AgentError, BadInput, DeviceFault, NotRunning, Refused
from agent.events import EventKind, EventLog
from agent.lease import Leases
from agent.messages import (
    ArmCommand,
    ArmDrive,
    ArmEstop,
    ArmHandover,
    ArmHeartbeat,
    ArmReply,
    ArmReport,
    ArmReset,
    ArmShutdown,
    CameraReport,
    CameraState,
    Drive,
    EpisodeSource,
    MarkEpisode,
    PolicyCommand,
    PolicyReply,
    PolicyReport,
    PolicyShutdown,
    PolicyState,
    RecorderReply,
    RecorderReport,
    RecorderShutdown,
    Tick,
)
from agent.modes import RECORDABLE, WHAT_TO_DO, Mode, ModeMachine, Transition, steps
from agent.requests import Progress, Request, origin
from agent.session import PROGRESS_S, Plan, Session
from agent.supervisor import ChildSpec, Supervisor
from agent.task import Task, TaskPlan, TaskState, load, require_idle_hands
from agent.telemetry import logger
from agent.transport import AsyncCommandClient, AsyncSubscriber, is_served, topic

HEARTBEAT_S: Final = 0.5
"""The arm holds after 3 s without one; six chances are enough on a busy host."""

ARM_ANSWER_S: Final = 1.0
RECORDER_ANSWER_S: Final = 5.0
"""The recorder answers at once, but a loaded disk may hold its journal's first fsync."""

HANDOVER_S: Final = 2.0
"""For an arm process of an earlier agent to leave the port, torque as it is."""

PARK_AND_EXIT_S: Final = 15.0
"""The longest way to the park pose at 30 degrees a second takes 8 s."""

COMMIT_AND_EXIT_S: Final = 10.0

ARM_SILENCE_S: Final = 1.0
"""The arm publishes every tick, at least ten a second. A bus time-out or a reconnect takes 0.3 s."""

POLICY_ANSWER_S: Final = 2.0
"""Its main thread only moves messages, but Python hands it the interpreter late while a model is being imported."""

POLICY_SILENCE_S: Final = 10.0

POLICY_ENTRY = "agent.inference.process:main"

SURFACES: Final = {"web": "agent.api.http.process:main", "mqtt": "agent.api.mqtt.process:main"}

SURFACE_SILENCE_S: Final = 10.0
"""They say `alive` every 2 s."""

RECORDER_SILENCE_S: Final = 10.0
CAMERA_SILENCE_S: Final = 6.0

STARTING_S: Final = 3.0
"""How long an arm that does not answer is still starting before it is a fault."""

RECORD_PATIENCE_S: Final = 2.0
"""A recorder or an arm that has just been restarted hears the other within a few ticks."""

RETRY_S: Final = 0.1

EVENTS_BEAT_S: Final = 2.0
"""A line at least this often to those who follow events: they see that the agent lives, it sees that they do."""

CAMERA_REPORTS: Final = topic(CameraReport("", 0, 0, CameraState.CONNECTING))
"""The daemon reads the cameras' reports; the frames beside them are not even sent to it."""

POLICY_REPORTS: Final = topic(PolicyReport(0, 0, PolicyState.EMPTY))

GUARDED: Final = frozenset({Mode.ALIGNING, Mode.TELEOP, Mode.EXECUTING})
"""Motion that ends when the lease does that it was begun with. An arm that is parking goes on: it comes to rest."""

MOVING: Final = GUARDED | {Mode.HOMING}

HOLD_AGAIN_S: Final = 0.1


class From(StrEnum):
    """From where a verb may be asked for."""

    ANYWHERE = "anywhere"
    LEASE = "lease"  # from a distance only with control
    HERE = "here"  # on this machine only


@dataclass(frozen=True)
class Verb:
    do: Callable[[Request], Awaitable[dict[str, Any]]]
    origin: From = From.ANYWHERE


class Station:
    """Ties the mode machine, the supervisor and the recording session together."""

    def __init__(self, config: StationConfig, clock: Clock) -> None:
        self.config = config
        self.paths: Paths = config.paths
        self._clock = clock
        self._started_ns = clock.now_ns()
        self.events = EventLog(clock)
        self.machine = ModeMachine(clock, self._log_transition)
        self.leases = Leases(clock, self._log_lease, self._lease_lost)
        self.arm: ArmReport | None = None
        self.tick: Tick | None = None
        self.cameras: dict[str, CameraReport] = {}
        self.recorder: RecorderReport | None = None
        self.policy: PolicyReport | None = None
        self.session: Session | None = None
        self.task: Task | None = None
        self.last_session: dict[str, Any] | None = None
        self.last_task: dict[str, Any] | None = None
        self._arm_client: AsyncCommandClient[ArmReport] = AsyncCommandClient(self.paths.arm_ctl, ArmReply)
        self._recorder_client: AsyncCommandClient[RecorderReport] = AsyncCommandClient(
            self.paths.recorder_ctl, RecorderReply
        )
        self._policy_client: AsyncCommandClient[PolicyReport] = AsyncCommandClient(self.paths.policy_ctl, PolicyReply)
        self._one_at_a_time = asyncio.Lock()
        self._background: set[asyncio.Future[Any]] = set()
        self._arm_first_heard_ns: int | None = None
        self._holding_orphan = False
        self.stop_requested = asyncio.Event()
        self.supervisor = Supervisor(config, self._specs(), clock, self._child_down, self._child_failed)
        self._verbs: dict[str, Verb] = {
            "status": Verb(self._status_verb),
            "events": Verb(self._events_verb),
            "alive": Verb(self._alive),
            "lease.take": Verb(self._lease_take),
            "lease.renew": Verb(self._lease_renew),
            "lease.release": Verb(self._lease_release),
            "teleop.start": Verb(self._teleop_start, From.LEASE),
            "teleop.stop": Verb(self._teleop_stop),
            "task.start": Verb(self._task_start, From.LEASE),
            "task.stop": Verb(self._task_stop),
            "hold": Verb(self._hold),
            "park": Verb(self._park, From.LEASE),
            "release": Verb(self._release, From.LEASE),
            "estop": Verb(self._estop),
            "reset": Verb(self._reset, From.LEASE),
            "record.start": Verb(self._record_start, From.LEASE),
            "record.stop": Verb(self._record_stop),
            "record.discard": Verb(self._record_discard, From.LEASE),
            "record.rerecord": Verb(self._record_again, From.LEASE),
            "episodes.list": Verb(self._episodes_list),
            "episodes.show": Verb(self._episodes_show),
            "episodes.mark": Verb(self._episodes_mark),
            "shutdown": Verb(self._shutdown_verb, From.HERE),
        }

    def _specs(self) -> list[ChildSpec]:
        cameras = [
            ChildSpec(f"camera-{name}", "agent.robot.camera:main", "devices", {"camera": name}, CAMERA_SILENCE_S)
            for name in self.config.views().values()
        ]
        return [
            ChildSpec("arm", "agent.robot.arm:main", "devices", silence_s=ARM_SILENCE_S, orphan_stays=True),
            *cameras,
            ChildSpec("policy", POLICY_ENTRY, "devices", silence_s=POLICY_SILENCE_S),
            ChildSpec("recorder", "agent.robot.recording.process:main", "recorder", silence_s=RECORDER_SILENCE_S),
            *self._surfaces(),
        ]

    def _surfaces(self) -> list[ChildSpec]:
        """What people and fleets reach the station through. They come after what moves the arm, and it needs none."""
        wanted = {"web": self.config.http, "mqtt": self.config.mqtt}
        return [
            ChildSpec(name, SURFACES[name], "surfaces", silence_s=SURFACE_SILENCE_S, vital=False)
            for name, settings in wanted.items()
            if settings is not None
        ]

    # --- running ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the station going until `stop_requested`, then leave the arm parked and episodes committed."""
        tasks = [
            asyncio.create_task(self.supervisor.run(self._before_spawn), name="supervisor"),
            asyncio.create_task(self._listen_to_arm(), name="arm reports"),
            asyncio.create_task(self._listen_to_recorder(), name="recorder reports"),
            asyncio.create_task(self._listen_to_policy(), name="policy reports"),
            *(
                asyncio.create_task(self._listen_to_camera(name), name=f"camera {name} reports")
                for name in self.config.cameras
            ),
            asyncio.create_task(self._beat(), name="heartbeat"),
            asyncio.create_task(self.leases.watch(), name="lease"),
        ]
        stop = asyncio.create_task(self.stop_requested.wait(), name="stop requested")
        try:
            done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()  # a background task never ends by itself: this raises why it did
            await self._stop()
        finally:
            self.supervisor.expect_exit()
            await self.supervisor.close()
            for task in [stop, *tasks]:
                task.cancel()
            await asyncio.gather(stop, *tasks, return_exceptions=True)

    async def _before_spawn(self, spec: ChildSpec) -> None:
        """An arm process of an agent that was killed still holds the arm: take it over without a jerk."""
        if spec.name != "arm" or not is_served(self.paths.arm_ctl):
            return
        with contextlib.suppress(AgentError):
            report = await self._arm_client.ask_async(ArmHandover("a new agent starts"), HANDOVER_S)
            logger.info("took over from the arm process of an earlier agent", pid=report.pid)

    async def _beat(self) -> None:
        while True:
            # Silence is judged by the supervisor; here a missing answer only means: try again.
            with contextlib.suppress(AgentError):
                await self._arm_client.ask_async(ArmHeartbeat(), ARM_ANSWER_S)
            await asyncio.sleep(HEARTBEAT_S)

    async def _listen_to_arm(self) -> None:
        decoder = msgspec.msgpack.Decoder(Tick | ArmReport)
        with contextlib.closing(AsyncSubscriber(self.paths.arm_pub)) as subscriber:
            while True:
                message = decoder.decode((await subscriber.receive())[0])
                if isinstance(message, Tick):
                    self.supervisor.heard("arm")
                    self.tick = message
                    if self.task and self.task.taken_by(message):
                        self._spawn(self._take_over("the leader was moved"))
                else:
                    self._heard_from_arm(message)

    async def _listen_to_recorder(self) -> None:
        decoder = msgspec.msgpack.Decoder(RecorderReport)
        with contextlib.closing(AsyncSubscriber(self.paths.recorder_pub)) as subscriber:
            while True:
                before, self.recorder = self.recorder, decoder.decode((await subscriber.receive())[0])
                self.supervisor.heard("recorder")
                if self.recorder.salvaged > (before.salvaged if before else 0):
                    self.events.publish(
                        EventKind.EPISODE,
                        f"Episodes that a crash had cut short were repaired: {self.recorder.salvaged}.",
                        outcome="salvaged",
                        episodes=self.recorder.salvaged,
                    )
                if self.session is not None:
                    await self.session.heard(self.recorder)

    async def _listen_to_policy(self) -> None:
        decoder = msgspec.msgpack.Decoder(PolicyReport)
        with contextlib.closing(AsyncSubscriber(self.paths.policy_pub, topic=POLICY_REPORTS)) as subscriber:
            while True:
                self._heard_from_policy(decoder.decode((await subscriber.receive())[0]))
                self.supervisor.heard("policy")
                if self.task and self.task.due:
                    self._spawn(self._end_task("its time is over"))

    async def _listen_to_camera(self, name: str) -> None:
        decoder = msgspec.msgpack.Decoder(CameraReport)
        with contextlib.closing(AsyncSubscriber(self.paths.camera_pub(name), topic=CAMERA_REPORTS)) as subscriber:
            while True:
                report = decoder.decode((await subscriber.receive())[0])
                self.supervisor.heard(f"camera-{name}")
                before, self.cameras[name] = self.cameras.get(name), report
                if before is None or before.state is not report.state:
                    self.events.publish(
                        EventKind.CAMERA,
                        f"Camera {name} is {report.state}{f': {report.reason}' if report.reason else ''}.",
                        camera=name,
                        state=report.state,
                        reason=report.reason,
                    )

    async def _stop(self) -> None:
        """Commit, park, release, in this order; each bounded, each logged when it fails."""
        self.machine.to(Mode.STOPPING, "the agent is shutting down")
        if self.session and not self.session.over:
            with contextlib.suppress(AgentError, TimeoutError):
                await asyncio.wait_for(self.session.stop(), COMMIT_AND_EXIT_S)
        self.supervisor.expect_exit()
        for name, ask, timeout_s in (
            ("policy", self.ask_policy(PolicyShutdown()), COMMIT_AND_EXIT_S),
            ("recorder", self._ask_recorder(RecorderShutdown()), COMMIT_AND_EXIT_S),
            ("arm", self.ask_arm(ArmShutdown("the agent is shutting down")), PARK_AND_EXIT_S),
        ):
            try:
                await ask
            except AgentError as error:
                logger.warning("child did not take the shutdown", child=name, problem=str(error))
                continue
            if not await self.supervisor.wait_ended(name, timeout_s):
                logger.error("child did not end in time", child=name, timeout_s=timeout_s)

    # --- following the children ------------------------------------------------------------------------

    def _heard_from_arm(self, report: ArmReport) -> None:
        if self.arm is not None and report.at_ns < self.arm.at_ns:
            return  # published before a command was answered, delivered after the answer
        self.arm = report
        if self._arm_first_heard_ns is None:
            self._arm_first_heard_ns = self._clock.now_ns()
        self._follow_arm(report)

    def _follow_arm(self, report: ArmReport) -> None:
        """The arm process knows what the arm does; the mode says what that means for people."""
        mode = self.machine.mode
        if mode is Mode.STOPPING:
            return
        if mode is Mode.FAULT and self.supervisor.failed() and report.drive is not Drive.ESTOP:
            return
        wanted = self._mode_for(report.drive, mode)
        if wanted is mode:
            if mode in (Mode.HOLD, Mode.FAULT, Mode.ESTOP):
                self.machine.reason = report.reason
            return
        # The arm may be two drives further already: one that is aligned when teleop starts follows in the next tick.
        for step in steps(mode, wanted):
            self.machine.to(step, report.reason)
        if self.task and self.machine.mode not in self._of_a_task():
            self._spawn(self._end_task(report.reason))
        elif self.machine.mode not in RECORDABLE and not self.task and self.session and not self.session.over:
            self._spawn(self._end_session(report.reason))

    def _of_a_task(self) -> tuple[Mode, ...]:
        """The modes that the task under way may be in; in any other it is over."""
        taken_over = self.task is not None and self.task.state is TaskState.TAKEN_OVER
        return (Mode.EXECUTING, Mode.ALIGNING, Mode.TELEOP) if taken_over else (Mode.EXECUTING,)

    def _mode_for(self, drive: Drive, mode: Mode) -> Mode:
        match drive:
            case Drive.OFFLINE:
                waited_ns = self._clock.now_ns() - (self._arm_first_heard_ns or self._clock.now_ns())
                return mode if mode is Mode.STARTING and waited_ns < nanoseconds(STARTING_S) else Mode.FAULT
            case Drive.LIMP:
                return mode if mode in (Mode.IDLE, Mode.TRAINING) else Mode.IDLE
            case Drive.HOLD:
                return Mode.HOLD
            case Drive.ALIGN:
                return Mode.ALIGNING
            case Drive.FOLLOW:
                return Mode.TELEOP
            case Drive.EXECUTE:
                return Mode.EXECUTING
            case Drive.PARK:
                return Mode.HOMING
            case Drive.ESTOP:
                return Mode.ESTOP

    def _heard_from_policy(self, report: PolicyReport) -> None:
        before, self.policy = self.policy, report
        if before and before.at_ns > report.at_ns:
            self.policy = before  # published before a command was answered, delivered after the answer
        elif _notable(report) != (_notable(before) if before else (PolicyState.EMPTY, None)):
            self.events.publish(
                EventKind.POLICY,
                f"Policy {report.policy or '-'} is {report.state}{f': {report.reason}' if report.reason else ''}.",
                policy=report.policy,
                hash=report.hash,
                state=report.state,
                reason=report.reason,
            )

    def _child_down(self, name: str, why: str) -> None:
        self.events.publish(EventKind.CHILD, f"The process {name} ended: {why}.", child=name, how=why, given_up=False)
        if name == "arm":
            self.arm = None
            if self.machine.allows(Mode.FAULT):
                self.machine.to(Mode.FAULT, f"the arm process ended ({why}); starting it again")
        elif name == "recorder":
            self.recorder = None
        elif name == "policy":
            self.policy = None
            if self.task and self.task.state is TaskState.RUNNING:
                self._spawn(self._end_task(f"the policy process ended ({why})"))
        elif name not in SURFACES:
            self.cameras.pop(name.removeprefix("camera-"), None)

    def _child_failed(self, name: str, why: str) -> None:
        self.events.publish(EventKind.CHILD, f"Given up: {why}.", child=name, how=why, given_up=True)
        if not self.supervisor.is_vital(name):
            return
        if self.machine.mode is Mode.FAULT or self.machine.allows(Mode.FAULT):
            self.machine.to(Mode.FAULT, f"{why}; `so-agent reset` tries again")
            self._spawn(self._hold_in_fault(why))

    async def _hold_in_fault(self, why: str) -> None:
        await self._end_session(why)
        if self.arm and self.arm.torque_on:
            with contextlib.suppress(AgentError):  # the arm itself may be what failed
                await self.ask_arm(ArmDrive(Drive.HOLD, why))

    def _log_transition(self, transition: Transition) -> None:
        logger.info("mode", before=transition.before, after=transition.after, cause=transition.cause)
        self.events.publish(
            EventKind.MODE,
            f"{transition.after.capitalize()}: {transition.cause}.",
            before=transition.before,
            after=transition.after,
            cause=transition.cause,
        )
        if transition.after in GUARDED:
            self._hold_orphan()  # what was asked for in time may begin too late
        elif transition.before in GUARDED:
            self.leases.begin(None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _end_session(self, cause: str, success: bool | None = None) -> None:
        """Motion ended under a recording: what was recorded up to here is kept."""
        if self.session and not self.session.over:
            logger.warning("recording ends because the arm stopped", cause=cause)
            with contextlib.suppress(AgentError):
                await self.session.stop(success)

    # --- asking the children ---------------------------------------------------------------------------

    async def ask_arm(self, command: ArmCommand, timeout_s: float = ARM_ANSWER_S) -> ArmReport:
        try:
            report = await self._arm_client.ask_async(command, timeout_s)
        except NotRunning as error:
            raise DeviceFault(
                "The arm process does not answer.", "It is being restarted; `so-agent status` shows how it goes."
            ) from error
        self._heard_from_arm(report)
        return report

    async def ask_policy(self, command: PolicyCommand) -> PolicyReport:
        try:
            report = await self._policy_client.ask_async(command, POLICY_ANSWER_S)
        except NotRunning as error:
            raise DeviceFault(
                "The policy process does not answer.", "It is being restarted; `so-agent status` shows how it goes."
            ) from error
        self._heard_from_policy(report)
        return report

    def policy_report(self) -> PolicyReport | None:
        return self.policy

    async def _ask_recorder(self, command: Any) -> RecorderReport:
        try:
            return await self._recorder_client.ask_async(command, RECORDER_ANSWER_S)
        except NotRunning as error:
            raise DeviceFault(
                "The recorder does not answer.", "It is starting or being restarted; try again in a few seconds."
            ) from error

    async def _drive(self, drive: Drive, mode: Mode, cause: str) -> dict[str, Any]:
        self.machine.require(mode)
        await self.ask_arm(ArmDrive(drive, cause))
        return self._mode()

    # --- verbs -----------------------------------------------------------------------------------------

    async def handle(self, verb: str, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Carry out one request. Raises AgentError with a sentence for the user."""
        known = self._verbs.get(verb)
        if known is None:
            raise BadInput(f"Unknown verb {verb!r}.", f"Known are: {', '.join(self._verbs)}.")
        request = origin(args, progress)
        logger.debug("request", verb=verb, via=request.via)
        if request.remote and known.origin is From.HERE:
            raise Refused(f"{verb} is for the station itself.", "Run `so-agent` there.")
        if request.remote and known.origin is From.LEASE:
            self.leases.require(request.token)
        return await known.do(request)

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
            self._hold_orphan()

    async def _status_verb(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        return self.status()

    async def _events_verb(self, request: Request) -> dict[str, Any]:
        """What is remembered since an event; with `follow`, then everything that comes, until the client hangs up."""
        since, follow = requests.events(request.args)
        listener = self.events.follow()
        try:
            lost, events = self.events.since(since)
            if not follow:
                return {"events": msgspec.to_builtins(events), "last": self.events.last, "lost": lost}
            while True:
                if lost:
                    await request.progress({"lost": lost})
                for event in events:
                    await request.progress({"event": msgspec.to_builtins(event)})
                try:
                    lost, event = await asyncio.wait_for(listener.next(), EVENTS_BEAT_S)
                    events = [event]
                except TimeoutError:
                    lost, events = 0, []
                    await request.progress({"last": self.events.last})
        finally:
            self.events.unfollow(listener)

    async def _alive(self, request: Request) -> dict[str, Any]:
        """A sign of life of a surface's process."""
        child = request.args.pop("child", None)
        requests.only(request.args)
        if child not in SURFACES or child not in self.supervisor.children:
            raise BadInput(f"{child!r} is no process of this station that gives signs of life here.")
        self.supervisor.heard(child)
        return {}

    async def _lease_take(self, request: Request) -> dict[str, Any]:
        owner, ttl_s, take_over = requests.lease(request.args)
        lease = self.leases.take(owner, ttl_s, request.via, take_over)
        return {"token": lease.token, "owner": lease.owner, "ttl_s": lease.ttl_s}

    async def _lease_renew(self, request: Request) -> dict[str, Any]:
        lease = self.leases.renew(requests.token(request.args))
        return {"owner": lease.owner, "ttl_s": lease.ttl_s, **self._mode()}

    async def _lease_release(self, request: Request) -> dict[str, Any]:
        self.leases.release(requests.token(request.args))
        return self._mode()

    def _log_lease(self, text: str, data: dict[str, Any]) -> None:
        logger.info("lease", **data)
        self.events.publish(EventKind.LEASE, text, **data)

    def _lease_lost(self, cause: str) -> None:
        self._hold_orphan()

    def _hold_orphan(self) -> None:
        """Hold the arm when it moves for somebody who has no control any more. Not behind the lock: see `_estop`."""
        if self.machine.mode in GUARDED and self.leases.orphaned and not self._holding_orphan:
            self._holding_orphan = True
            self._spawn(self._hold_until_held())

    async def _hold_until_held(self) -> None:
        try:
            while self.machine.mode in GUARDED and (cause := self.leases.orphaned):
                with contextlib.suppress(AgentError):  # an arm process that is being restarted holds by itself
                    await self.ask_arm(ArmDrive(Drive.HOLD, cause))
                    continue
                await asyncio.sleep(HOLD_AGAIN_S)
        finally:
            self._holding_orphan = False

    async def _teleop_start(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        if self.config.robot.leader is None:
            raise Refused("This station has no leader arm.", "Add robot.leader to the configuration.")
        async with self._one_at_a_time:
            under_way = self.machine.mode in (Mode.TELEOP, Mode.ALIGNING)
            async with self._commanding(request, begins=not under_way):
                if under_way:
                    return self._mode()
                if self.task:
                    await self._give_to_the_leader(self.task, "teleop was started")
                    return self._mode()
                return await self._drive(Drive.ALIGN, Mode.ALIGNING, "teleop was started")

    async def _teleop_stop(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        if self.machine.mode not in (Mode.TELEOP, Mode.ALIGNING):
            raise Refused(
                f"Teleop is not running: the station is in mode {self.machine.mode}.", WHAT_TO_DO[self.machine.mode]
            )
        if self.task:
            async with self._one_at_a_time, self._commanding(request, begins=not self.task.plan.unattended):
                await self.task.run()
                self._publish_task(self.task, f"Task {self.task.plan.text!r} goes on.")
                return self._mode()
        return await self._stop_moving(request, "teleop was stopped")

    async def _take_over(self, cause: str) -> None:
        async with self._one_at_a_time:
            if self.task and self.task.state is TaskState.RUNNING and self.machine.mode is Mode.EXECUTING:
                with contextlib.suppress(AgentError):  # e.g. no leader reading: the task goes on
                    await self._give_to_the_leader(self.task, cause)

    async def _give_to_the_leader(self, task: Task, cause: str) -> None:
        before, task.state = task.state, TaskState.TAKEN_OVER  # first: the arm's answer changes the mode
        try:
            await task.take_over(cause)
        except AgentError:
            task.state = before
            raise
        self._publish_task(task, f"A person took over {task.plan.text!r}: {cause}.")

    async def _task_start(self, request: Request) -> dict[str, Any]:
        wanted = requests.task(request.args, self.config)
        requests.only(request.args)
        self._require_task_possible()
        await load(wanted.policy, self, request.progress)  # not behind the lock: a person may want the arm meanwhile
        async with self._one_at_a_time:
            self._require_task_possible()
            async with self._commanding(request, begins=not wanted.unattended):
                return await self._begin_task(wanted)

    async def _begin_task(self, wanted: TaskPlan) -> dict[str, Any]:
        task = self.task = Task(wanted, self, self.config, self._clock)
        try:
            await task.run()
            if wanted.record:
                longest = self.config.recording.max_episode_s
                await self._begin_session(Plan(wanted.text, 1, wanted.duration_s or longest, 0.0, EpisodeSource.POLICY))
        except AgentError:
            self.task = None
            if self.machine.mode is Mode.EXECUTING:
                await task.hold("the task could not be started")
            raise
        if task.over:  # while the recorder began
            await self._end_session(task.over)
        self._publish_task(task, f"Task {wanted.text!r} began with the policy {wanted.policy}.")
        return {**self._mode(), "task": task.status()}

    def _require_task_possible(self) -> None:
        if self.task:
            raise Refused(f"The task {self.task.plan.text!r} is under way.", "Run `so-agent task stop` first.")
        require_idle_hands(self.machine.mode)
        self.machine.require(Mode.EXECUTING)

    async def _task_stop(self, request: Request) -> dict[str, Any]:
        success = requests.success(request.args)
        requests.only(request.args)
        if self.task is None:
            raise Refused("No task is under way.", 'Start one with `so-agent task start --task "..."`.')
        async with self._commanding(request, stops=True):
            await self._end_task("task stop was asked for", success)
        return {**self._mode(), "task": self.last_task}

    async def _end_task(self, cause: str, success: bool | None = None) -> None:
        """Hold where it is, keep what was recorded."""
        task = self.task
        if task is None or task.over:
            return
        task.over = cause  # first: the arm's answer changes the mode, and that would end the task too
        if self.machine.mode in self._of_a_task():
            with contextlib.suppress(AgentError):  # an arm that does not answer holds by itself
                await task.hold(cause)
        self.task, self.last_task = None, {**task.status(), "over": cause}
        self._publish_task(task, f"Task {task.plan.text!r} is over: {cause}.")
        self._spawn(task.silence(cause))  # not waited for: the arm takes nothing of it any more
        await self._end_session(cause, success)

    def _publish_task(self, task: Task, text: str) -> None:
        self.events.publish(EventKind.TASK, text, over=task.over, **task.status())

    def _mode(self) -> dict[str, Any]:
        return {"mode": self.machine.mode, "reason": self.machine.reason}

    async def _hold(self, request: Request) -> dict[str, Any]:
        return await self._stop_moving(request, "hold was asked for")

    async def _stop_moving(self, request: Request, cause: str) -> dict[str, Any]:
        requests.only(request.args)
        if self._one_at_a_time.locked() and self.machine.mode in MOVING:
            # Whatever is under way may take seconds, the arm must not move for as long.
            await self.ask_arm(ArmDrive(Drive.HOLD, cause))
        async with self._one_at_a_time, self._commanding(request, stops=True):
            if self.machine.mode is not Mode.HOLD:
                await self._drive(Drive.HOLD, Mode.HOLD, cause)
            await self._end_task(cause)
            await self._end_session(cause)
            return self._mode()

    async def _park(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        async with self._one_at_a_time, self._commanding(request):
            if self.machine.mode in (Mode.TELEOP, Mode.ALIGNING, Mode.EXECUTING):
                await self._drive(Drive.HOLD, Mode.HOLD, "park was asked for")
                await self._end_task("park was asked for")
                await self._end_session("park was asked for")
            return await self._drive(Drive.PARK, Mode.HOMING, "park was asked for")

    async def _release(self, request: Request) -> dict[str, Any]:
        """Torque off wherever the arm is. Allowed in every mode: a person can always release the arm."""
        requests.only(request.args)
        async with self._commanding(request):
            report = await self.ask_arm(ArmDrive(Drive.LIMP, "release was asked for"))
            return {**self._mode(), "torque_on": report.torque_on}

    async def _estop(self, request: Request) -> dict[str, Any]:
        cause = str(request.args.get("cause", "e-stop was pressed"))[:200]
        # Not behind the lock: an e-stop waits for nobody.
        report = await self.ask_arm(ArmEstop(cause))
        return {"mode": self.machine.mode, "reason": self.machine.reason, "verified": report.estop_verified}

    async def _reset(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        async with self._one_at_a_time:
            if request.remote and self.machine.mode is Mode.ESTOP:
                raise Refused(
                    "An emergency stop is reset at the station only.",
                    "Somebody there makes sure that the arm is safe, and runs `so-agent reset`.",
                )
            failed = any(child.failed for child in self.supervisor.children.values())
            if self.machine.mode not in (Mode.ESTOP, Mode.FAULT) and not failed:
                raise Refused(f"There is nothing to reset in mode {self.machine.mode}.")
            self.supervisor.retry_failed()
            if self.arm is not None:
                await self.ask_arm(ArmReset("reset was asked for"))
            return {"mode": self.machine.mode, "reason": self.machine.reason}

    async def _record_start(self, request: Request) -> dict[str, Any]:
        wait = bool(request.args.pop("wait", False))
        wanted = requests.recording(request.args, self.config)
        async with self._one_at_a_time:
            if self.machine.mode not in RECORDABLE:
                raise Refused(
                    f"Recording needs a moving arm; the station is in mode {self.machine.mode}.",
                    WHAT_TO_DO[self.machine.mode],
                )
            session = await self._begin_session(wanted)
        if not wait:
            return {"recording": session.status()}
        while not session.over:
            await request.progress(session.status())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(session.wait(), PROGRESS_S)
        return session.summary()

    async def _begin_session(self, plan: Plan) -> Session:
        if self.session and not self.session.over:
            raise Refused(f"Already recording {self.session.plan.task!r}.", "Run `so-agent record stop` first.")
        session = self.session = Session(plan, self._ask_recorder, self.events)
        try:
            await self._start_patiently(session)
        except AgentError:
            self.session = None
            raise
        return session

    async def _start_patiently(self, session: Session) -> None:
        """A process that was just restarted may not hear its neighbour yet: that is no reason to send a person away."""
        give_up_ns = self._clock.now_ns() + nanoseconds(RECORD_PATIENCE_S)
        while True:
            try:
                return await session.start()
            except DeviceFault:
                if self._clock.now_ns() > give_up_ns:
                    raise
            await asyncio.sleep(RETRY_S)

    def _running_session(self) -> Session:
        if self.session is None or self.session.over:
            raise Refused("Nothing is being recorded.", 'Start with `so-agent record start --task "..."`.')
        return self.session

    async def _record_stop(self, request: Request) -> dict[str, Any]:
        success = requests.success(request.args)
        requests.only(request.args)
        session = self._running_session()
        await session.stop(success)
        return session.summary()

    async def _record_discard(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        session = self._running_session()
        await session.discard("discarded by the operator")
        return session.summary()

    async def _record_again(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        session = self._running_session()
        await session.again()
        return {"recording": session.status()}

    async def _episodes_list(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        return {"episodes": msgspec.to_builtins(await asyncio.to_thread(self._index().list))}

    async def _episodes_show(self, request: Request) -> dict[str, Any]:
        episode = requests.episode(request.args)
        requests.only(request.args)
        return {"episode": msgspec.to_builtins(await asyncio.to_thread(self._index().show, episode))}

    async def _episodes_mark(self, request: Request) -> dict[str, Any]:
        episode, success = requests.episode(request.args), request.args.pop("success", None)
        requests.only(request.args)
        await self._ask_recorder(MarkEpisode(episode, success))
        return {"episode": msgspec.to_builtins(await asyncio.to_thread(self._index().show, episode))}

    def _index(self) -> Any:
        from agent.robot.recording.index import DatasetIndex

        return DatasetIndex(self.paths.dataset)

    async def _shutdown_verb(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        self.stop_requested.set()
        return {"mode": Mode.STOPPING}

    # --- status ----------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The public shape of `so-agent status --json`; docs/command-line.md describes it."""
        now_ns = self._clock.now_ns()
        children = self.supervisor.children
        return {
            "station": self.config.station,
            "version": __version__,
            "config_hash": self.config.hash,
            "uptime_s": round(seconds(now_ns - self._started_ns), 1),
            "mode": self.machine.mode,
            "reason": self.machine.reason,
            "recording": self.session.status() if self.session and not self.session.over else None,
            "lease": self.leases.status(),
            "task": self.task.status() if self.task else None,
            "last_task": self.last_task,
            "arm": status.plain(self.arm, without=("servos",)) if self.arm else None,
            "servos": {servo.name: status.plain(servo) for servo in self.arm.servos} if self.arm else None,
            "cameras": {
                name: status.camera(
                    self.config.cameras[name], self.cameras.get(name), children[f"camera-{name}"], now_ns
                )
                for name in self.config.views().values()
            }
            or None,
            "recorder": status.plain(self.recorder) if self.recorder else None,
            "policy": status.policy(self.policy, self.arm) if self.policy and self.policy.policy else None,
            "federation": None,
            "children": {name: status.child(state) for name, state in children.items()},
        }


def _notable(report: PolicyReport) -> tuple[PolicyState, str | None]:
    """What of a policy's report makes an event when it changes. That a task runs is told by the task itself."""
    return (PolicyState.READY if report.state is PolicyState.RUNNING else report.state, report.policy)
