"""The station: one owner of the mode, of the children, and of everything a person may ask for."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, Final

from agent import __version__, requests, status
from agent.background import Background
from agent.clock import Clock, nanoseconds, seconds
from agent.config import StationConfig
from agent.errors import AgentError, BadInput, Refused
from agent.events import EventKind, EventLog
from agent.guest import Federate, Guest
from agent.links import Links
from agent.messages import ArmDrive, ArmReport, ArmReset, ArmShutdown, Drive, RecorderReport, RecorderShutdown, Tick
from agent.modes import RECORDABLE, Mode, ModeMachine, Transition, steps
from agent.motion import Motion
from agent.paths import Paths
from agent.policy_messages import PolicyShutdown
from agent.recordings import Recordings
from agent.requests import From, Progress, Request, Verb, origin
from agent.supervisor import ChildSpec, Supervisor
from agent.telemetry import logger

PARK_AND_EXIT_S: Final = 15.0
"""The longest way to the park pose at 30 degrees a second takes 8 s."""

COMMIT_AND_EXIT_S: Final = 10.0

ARM_SILENCE_S: Final = 1.0
"""The arm publishes every tick, at least ten a second. A bus time-out or a reconnect takes 0.3 s."""

POLICY_SILENCE_S: Final = 10.0

POLICY_ENTRY = "agent.inference.process:main"

SURFACES: Final = {"web": "agent.api.http.process:main", "mqtt": "agent.api.mqtt.process:main"}

SURFACE_SILENCE_S: Final = 10.0
"""They say `alive` every 2 s."""

RECORDER_SILENCE_S: Final = 10.0
CAMERA_SILENCE_S: Final = 6.0

TRUST: Final = frozenset({"fl.enroll"})
"""Decides whose authority and whose code this station trusts: nothing to be asked for over a network."""

STARTING_S: Final = 3.0
"""How long an arm that does not answer is still starting before it is a fault."""


class Station:
    """Ties the mode machine, the children and what people ask for together."""

    def __init__(self, config: StationConfig, clock: Clock, federate: Federate | None = None) -> None:
        self.config = config
        self.paths: Paths = config.paths
        self._clock = clock
        self._started_ns = clock.now_ns()
        self._arm_first_heard_ns: int | None = None
        self._wanting = 0  # requests under way that want the arm
        self.stop_requested = asyncio.Event()
        self.background = Background()
        self.events = EventLog(clock)
        self.machine = ModeMachine(clock, self._mode_changed)
        self.supervisor = Supervisor(config, self._specs(), clock, self._child_down, self._child_failed)
        self.links = Links(config, self, self.events, self.supervisor.heard)
        self.recordings = Recordings(config, self.links, self.events, clock)
        self.guest = Guest(federate(config, clock, self) if federate else None)
        self.motion = Motion(
            config, clock, self.machine, self.links, self.recordings, self.events, self.background, self.guest.judged
        )
        self.leases = self.motion.leases
        self._verbs = self._table()

    def _table(self) -> dict[str, Verb]:
        motion, recordings = self.motion, self.recordings
        return {
            "status": Verb(self._status_verb),
            "events": Verb(self._events_verb),
            "alive": Verb(self._alive),
            "lease.take": Verb(motion.take_lease),
            "lease.renew": Verb(motion.renew_lease),
            "lease.release": Verb(motion.release_lease),
            "teleop.start": Verb(motion.start_teleop, From.LEASE, wants_arm=True),
            "teleop.stop": Verb(motion.stop_teleop, wants_arm=True),
            "task.start": Verb(motion.start_task, From.LEASE, wants_arm=True),
            "task.stop": Verb(motion.stop_task),
            "hold": Verb(motion.hold, wants_arm=True),
            "park": Verb(motion.park, From.LEASE, wants_arm=True),
            "release": Verb(motion.release, From.LEASE, wants_arm=True),
            "estop": Verb(motion.estop),  # a limp arm is stopped; a moving one has been made room for
            "reset": Verb(self._reset, From.LEASE),
            "record.start": Verb(motion.start_recording, From.LEASE, wants_arm=True),
            "record.stop": Verb(recordings.stop),
            "record.discard": Verb(recordings.discard, From.LEASE),
            "record.rerecord": Verb(recordings.again, From.LEASE),
            "episodes.list": Verb(recordings.list),
            "episodes.show": Verb(recordings.show),
            "episodes.mark": Verb(recordings.mark),
            "episodes.delete": Verb(recordings.delete),
            "episodes.restore": Verb(recordings.restore),
            "shutdown": Verb(self._shutdown_verb, From.HERE),
            **{
                name: Verb(do, From.HERE if name in TRUST else From.ANYWHERE) for name, do in self.guest.verbs().items()
            },
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
        work = {
            "supervisor": self.supervisor.run(self._before_spawn),
            **self.links.listeners(),
            "lease": self.leases.watch(),
        }
        tasks = [asyncio.create_task(coroutine, name=name) for name, coroutine in work.items()]
        guest = asyncio.create_task(self.guest.run(), name="federation")
        stop = asyncio.create_task(self.stop_requested.wait(), name="stop requested")
        try:
            done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()  # a background task never ends by itself: this raises why it did
            await self._stop()
        finally:
            self.supervisor.expect_exit()
            guest.cancel()
            await self.supervisor.close()
            for task in [stop, *tasks]:
                task.cancel()
            await asyncio.gather(stop, guest, *tasks, return_exceptions=True)

    async def _before_spawn(self, spec: ChildSpec) -> None:
        if spec.name == "arm":
            await self.links.take_the_arm()

    async def _stop(self) -> None:
        """Hold, commit, park, release, in this order; each bounded, each logged when it fails."""
        self.guest.yield_now("the agent is shutting down")
        self.machine.to(Mode.STOPPING, "the agent is shutting down")
        if self.links.arm and self.links.arm.drive in (Drive.ALIGN, Drive.FOLLOW, Drive.EXECUTE):
            with contextlib.suppress(AgentError):  # one that does not answer holds by itself
                await self.links.ask_arm(ArmDrive(Drive.HOLD, "the agent is shutting down"))
        if session := self.recordings.session:
            with contextlib.suppress(AgentError, TimeoutError):
                await asyncio.wait_for(session.stop(), COMMIT_AND_EXIT_S)
        self.supervisor.expect_exit()
        for name, ask, timeout_s in (
            ("policy", self.links.ask_policy(PolicyShutdown()), COMMIT_AND_EXIT_S),
            ("recorder", self.links.ask_recorder(RecorderShutdown()), COMMIT_AND_EXIT_S),
            ("arm", self.links.ask_arm(ArmShutdown("the agent is shutting down")), PARK_AND_EXIT_S),
        ):
            try:
                await ask
            except AgentError as error:
                logger.warning("child did not take the shutdown", child=name, problem=str(error))
                continue
            if not await self.supervisor.wait_ended(name, timeout_s):
                logger.error("child did not end in time", child=name, timeout_s=timeout_s)

    # --- following the children ------------------------------------------------------------------------

    def arm_reported(self, report: ArmReport) -> None:
        """The arm process knows what the arm does; the mode says what that means for people."""
        if self._arm_first_heard_ns is None:
            self._arm_first_heard_ns = self._clock.now_ns()
        mode = self.machine.mode
        if mode is Mode.STOPPING:  # and it stays so, that nothing can be begun any more
            if report.drive is Drive.ESTOP:
                self.machine.reason = report.reason
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
        if self.motion.task:
            if self.machine.mode not in self.motion.of_the_task():
                self.background.start(self.motion.end_task(report.reason))
        elif self.machine.mode not in RECORDABLE and self.recordings.session:
            self.background.start(self.recordings.end(report.reason))

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

    def arm_ticked(self, tick: Tick) -> None:
        self.motion.ticked(tick)

    async def recorder_reported(self, report: RecorderReport) -> None:
        await self.recordings.heard(report)

    def policy_reported(self) -> None:
        self.motion.look_at_the_clock()

    def _child_down(self, name: str, why: str) -> None:
        self.events.publish(EventKind.CHILD, f"The process {name} ended: {why}", child=name, how=why, given_up=False)
        self.links.forget(name)
        if name == "arm" and self.machine.allows(Mode.FAULT):
            self.machine.to(Mode.FAULT, f"the arm process ended ({why}); starting it again")
        elif name == "policy":
            self.motion.policy_ended(why)

    def _child_failed(self, name: str, why: str) -> None:
        self.events.publish(EventKind.CHILD, f"Given up: {why}", child=name, how=why, given_up=True)
        if not self.supervisor.is_vital(name):
            return
        if self.machine.mode is Mode.FAULT or self.machine.allows(Mode.FAULT):
            self.machine.to(Mode.FAULT, f"{why}; `so-agent reset` tries again")
            self.background.start(self._hold_in_fault(why))

    async def _hold_in_fault(self, why: str) -> None:
        await self.recordings.end(why)
        if self.links.arm and self.links.arm.torque_on:
            with contextlib.suppress(AgentError):  # the arm itself may be what failed
                await self.links.ask_arm(ArmDrive(Drive.HOLD, why))

    def _mode_changed(self, transition: Transition) -> None:
        logger.info("mode", before=transition.before, after=transition.after, cause=transition.cause)
        self.events.publish(
            EventKind.MODE,
            f"{transition.after.capitalize()}: {transition.cause}",
            before=transition.before,
            after=transition.after,
            cause=transition.cause,
        )
        self.motion.mode_changed(transition.before, transition.after)

    # --- what federation asks: see agent.fl.desk --------------------------------------------------------

    def wanted(self) -> str | None:
        if self.motion.task or self.motion.loading:
            return "a task is under way"
        if self.machine.mode is Mode.HOLD:
            return "the station is in mode hold; `so-agent park` frees it"
        if self.machine.mode not in (Mode.IDLE, Mode.TRAINING):
            return f"the station is in mode {self.machine.mode}"
        return "somebody asked for the arm" if self._wanting else None

    def hottest_c(self) -> float | None:
        servos = self.links.arm.servos if self.links.arm else ()
        return max((servo.temperature_c for servo in servos if servo.temperature_c is not None), default=None)

    def training(self, cause: str | None) -> None:
        if cause is None:
            if self.machine.mode is Mode.TRAINING:
                self.machine.to(Mode.IDLE, "training is over")
        elif self.wanted() is None:
            self.machine.to(Mode.TRAINING, cause)

    def tell(self, text: str, data: dict[str, Any]) -> None:
        self.events.publish(EventKind.FEDERATION, text, **data)

    # --- requests --------------------------------------------------------------------------------------

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
        if not known.wants_arm:
            return await known.do(request)
        with self._want(verb):
            return await known.do(request)

    @contextlib.contextmanager
    def _want(self, verb: str) -> Iterator[None]:
        """Whoever learns here makes room at once, before anything is asked of the arm."""
        self._wanting += 1
        self.guest.yield_now(f"{verb} was asked for")
        try:
            yield
        finally:
            self._wanting -= 1

    async def _status_verb(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        return self.status()

    async def _events_verb(self, request: Request) -> dict[str, Any]:
        """What is remembered since an event; with `follow`, then everything that comes, until the client hangs up."""
        since, follow = requests.events(request.args)
        return await self.events.tell(since, follow, request.progress)

    async def _alive(self, request: Request) -> dict[str, Any]:
        """A sign of life of a surface's process."""
        child = request.args.pop("child", None)
        requests.only(request.args)
        if child not in SURFACES or child not in self.supervisor.children:
            raise BadInput(f"{child!r} is no process of this station that gives signs of life here.")
        self.supervisor.heard(child)
        return {}

    async def _reset(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        async with self.motion.alone:
            mode = self.machine.mode
            if request.remote and mode is Mode.ESTOP:
                raise Refused(
                    "An emergency stop is reset at the station only.",
                    "Somebody there makes sure that the arm is safe, and runs `so-agent reset`.",
                )
            failed = any(child.failed for child in self.supervisor.children.values())
            if mode not in (Mode.ESTOP, Mode.FAULT) and not failed:
                raise Refused(f"There is nothing to reset in mode {mode}.")
            self.supervisor.retry_failed()
            if self.links.arm is not None:
                await self.links.ask_arm(ArmReset("reset was asked for"))
            return self.motion.mode()

    async def _shutdown_verb(self, request: Request) -> dict[str, Any]:
        requests.only(request.args)
        self.stop_requested.set()
        return {"mode": Mode.STOPPING}

    def status(self) -> dict[str, Any]:
        """The public shape of `so-agent status --json`; docs/command-line.md describes it."""
        now_ns = self._clock.now_ns()
        children, links, motion = self.supervisor.children, self.links, self.motion
        return {
            "station": self.config.station,
            "version": __version__,
            "config_hash": self.config.hash,
            "uptime_s": round(seconds(now_ns - self._started_ns), 1),
            "mode": self.machine.mode,
            "reason": self.machine.reason,
            "recording": self.recordings.session.status() if self.recordings.session else None,
            "lease": motion.leases.status(),
            "loading": motion.loading.policy if motion.loading else None,
            "task": motion.task.status() if motion.task else None,
            "last_task": motion.last_task,
            "arm": status.plain(links.arm, without=("servos",)) if links.arm else None,
            "servos": {servo.name: status.plain(servo) for servo in links.arm.servos} if links.arm else None,
            "cameras": {
                name: status.camera(
                    self.config.cameras[name], links.cameras.get(name), children[f"camera-{name}"], now_ns
                )
                for name in self.config.views().values()
            }
            or None,
            "recorder": status.plain(links.recorder) if links.recorder else None,
            "policy": status.policy(links.policy, links.arm) if links.policy and links.policy.policy else None,
            "federation": self.guest.status(),
            "children": {name: status.child(state) for name, state in children.items()},
        }
