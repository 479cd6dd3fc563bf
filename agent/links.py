"""The station's ends of the sockets to its children: what they said last, and asking them for something."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec

from agent.config import StationConfig
from agent.errors import AgentError, DeviceFault, NotRunning
from agent.events import EventKind, EventLog
from agent.messages import (
    ArmCommand,
    ArmHandover,
    ArmHeartbeat,
    ArmReply,
    ArmReport,
    CameraReport,
    CameraState,
    RecorderCommand,
    RecorderReply,
    RecorderReport,
    Tick,
)
from agent.policy_messages import PolicyCommand, PolicyReply, PolicyReport, PolicyState
from agent.telemetry import logger
from agent.transport import AsyncCommandClient, AsyncSubscriber, is_served, topic

HEARTBEAT_S: Final = 0.5
"""The arm holds after 3 s without one; six chances are enough on a busy host."""

ARM_ANSWER_S: Final = 1.0
RECORDER_ANSWER_S: Final = 5.0
"""The recorder answers at once, but a loaded disk may hold its journal's first fsync."""

POLICY_ANSWER_S: Final = 2.0
"""Its main thread only moves messages, but Python hands it the interpreter late while a model is being imported."""

HANDOVER_S: Final = 2.0
"""For an arm process of an earlier agent to leave the port, torque as it is."""

CAMERA_REPORTS: Final = topic(CameraReport("", 0, 0, CameraState.CONNECTING))
"""The daemon reads the cameras' reports; the frames beside them are not even sent to it."""

POLICY_REPORTS: Final = topic(PolicyReport(0, 0, PolicyState.EMPTY))


class Ears(Protocol):
    """Who follows what the children say. Called after `Links` has it."""

    def arm_reported(self, report: ArmReport) -> None: ...

    def arm_ticked(self, tick: Tick) -> None: ...

    async def recorder_reported(self, report: RecorderReport) -> None: ...

    def policy_reported(self) -> None: ...


class Links:
    """The latest report of every child, None (or missing) while there is none; and their command sockets."""

    def __init__(self, config: StationConfig, ears: Ears, events: EventLog, heard: Callable[[str], None]) -> None:
        """`heard(child)` is called at every sign of life."""
        self.arm: ArmReport | None = None
        self.tick: Tick | None = None
        self.cameras: dict[str, CameraReport] = {}
        self.recorder: RecorderReport | None = None
        self.policy: PolicyReport | None = None
        self._paths = config.paths
        self._names = tuple(config.cameras)
        self._ears = ears
        self._events = events
        self._heard = heard
        self._arm: AsyncCommandClient[ArmReport] = AsyncCommandClient(self._paths.arm_ctl, ArmReply)
        self._recorder: AsyncCommandClient[RecorderReport] = AsyncCommandClient(self._paths.recorder_ctl, RecorderReply)
        self._policy: AsyncCommandClient[PolicyReport] = AsyncCommandClient(self._paths.policy_ctl, PolicyReply)

    def listeners(self) -> dict[str, Coroutine[Any, Any, None]]:
        """By name, what has to run as long as the station does."""
        return {
            "arm reports": self._listen_to_arm(),
            "recorder reports": self._listen_to_recorder(),
            "policy reports": self._listen_to_policy(),
            **{f"camera {name} reports": self._listen_to_camera(name) for name in self._names},
            "heartbeat": self._beat(),
        }

    def forget(self, child: str) -> None:
        """It ended: what it said last is not true any more."""
        match child:
            case "arm":
                self.arm = None
            case "recorder":
                self.recorder = None
            case "policy":
                self.policy = None
            case _:
                self.cameras.pop(child.removeprefix("camera-"), None)

    # --- asking ---

    async def ask_arm(self, command: ArmCommand, timeout_s: float = ARM_ANSWER_S) -> ArmReport:
        """Raises DeviceFault without an answer, and what the arm answers."""
        try:
            report = await self._arm.ask_async(command, timeout_s)
        except NotRunning as error:
            raise DeviceFault(
                "The arm process does not answer.", "It is being restarted; `so-agent status` shows how it goes."
            ) from error
        self._take_from_arm(report)
        return report

    async def ask_policy(self, command: PolicyCommand) -> PolicyReport:
        """Raises DeviceFault without an answer, and what the policy process answers."""
        try:
            report = await self._policy.ask_async(command, POLICY_ANSWER_S)
        except NotRunning as error:
            raise DeviceFault(
                "The policy process does not answer.", "It is being restarted; `so-agent status` shows how it goes."
            ) from error
        self._take_from_policy(report)
        return report

    def policy_report(self) -> PolicyReport | None:
        return self.policy

    async def ask_recorder(self, command: RecorderCommand) -> RecorderReport:
        """Raises DeviceFault without an answer, and what the recorder answers."""
        try:
            return await self._recorder.ask_async(command, RECORDER_ANSWER_S)
        except NotRunning as error:
            raise DeviceFault(
                "The recorder does not answer.", "It is starting or being restarted; try again in a few seconds."
            ) from error

    async def take_the_arm(self) -> None:
        """An arm process of an agent that was killed still holds the arm: take it over without a jerk."""
        if not is_served(self._paths.arm_ctl):
            return
        with contextlib.suppress(AgentError):
            report = await self._arm.ask_async(ArmHandover("a new agent starts"), HANDOVER_S)
            logger.info("took over from the arm process of an earlier agent", pid=report.pid)

    # --- listening ---

    async def _beat(self) -> None:
        while True:
            # Silence is judged by the supervisor; here a missing answer only means: try again.
            with contextlib.suppress(AgentError):
                await self._arm.ask_async(ArmHeartbeat(), ARM_ANSWER_S)
            await asyncio.sleep(HEARTBEAT_S)

    async def _listen_to_arm(self) -> None:
        decoder = msgspec.msgpack.Decoder(Tick | ArmReport)
        with contextlib.closing(AsyncSubscriber(self._paths.arm_pub)) as subscriber:
            while True:
                message = decoder.decode((await subscriber.receive())[0])
                if isinstance(message, Tick):
                    self._heard("arm")
                    self.tick = message
                    self._ears.arm_ticked(message)
                else:
                    self._take_from_arm(message)

    def _take_from_arm(self, report: ArmReport) -> None:
        if self.arm is not None and report.at_ns < self.arm.at_ns:
            return  # published before a command was answered, delivered after the answer
        self.arm = report
        self._ears.arm_reported(report)

    async def _listen_to_recorder(self) -> None:
        decoder = msgspec.msgpack.Decoder(RecorderReport)
        with contextlib.closing(AsyncSubscriber(self._paths.recorder_pub)) as subscriber:
            while True:
                before, report = self.recorder, decoder.decode((await subscriber.receive())[0])
                self.recorder = report
                self._heard("recorder")
                if report.salvaged > (before.salvaged if before else 0):
                    self._events.publish(
                        EventKind.EPISODE,
                        f"Episodes that a crash had cut short were repaired: {report.salvaged}",
                        outcome="salvaged",
                        episodes=report.salvaged,
                    )
                await self._ears.recorder_reported(report)

    async def _listen_to_policy(self) -> None:
        decoder = msgspec.msgpack.Decoder(PolicyReport)
        with contextlib.closing(AsyncSubscriber(self._paths.policy_pub, topic=POLICY_REPORTS)) as subscriber:
            while True:
                self._take_from_policy(decoder.decode((await subscriber.receive())[0]))
                self._heard("policy")
                self._ears.policy_reported()

    def _take_from_policy(self, report: PolicyReport) -> None:
        before = self.policy
        if before is not None and report.at_ns < before.at_ns:
            return  # as above
        self.policy = report
        if _notable(report) != (_notable(before) if before else (PolicyState.EMPTY, None)):
            self._events.publish(
                EventKind.POLICY,
                f"Policy {report.policy or '-'} is {report.state}{f': {report.reason}' if report.reason else ''}",
                policy=report.policy,
                hash=report.hash,
                state=report.state,
                reason=report.reason,
            )

    async def _listen_to_camera(self, name: str) -> None:
        decoder = msgspec.msgpack.Decoder(CameraReport)
        with contextlib.closing(AsyncSubscriber(self._paths.camera_pub(name), topic=CAMERA_REPORTS)) as subscriber:
            while True:
                report = decoder.decode((await subscriber.receive())[0])
                self._heard(f"camera-{name}")
                before, self.cameras[name] = self.cameras.get(name), report
                if before is None or before.state is not report.state:
                    self._events.publish(
                        EventKind.CAMERA,
                        f"Camera {name} is {report.state}{f': {report.reason}' if report.reason else ''}",
                        camera=name,
                        state=report.state,
                        reason=report.reason,
                    )


def _notable(report: PolicyReport) -> tuple[PolicyState, str | None]:
    """What of a policy's report makes an event when it changes. That a task runs is told by the task itself."""
    return (PolicyState.READY if report.state is PolicyState.RUNNING else report.state, report.policy)
