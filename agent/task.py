"""A task that the arm carries out by itself: from the request to the last action, with a person taking over in between.

A generation is one stretch of autonomous motion. Every start and every giving back begins a new one, so nothing that
was thought before can move the arm after.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from agent.clock import Clock, nanoseconds, seconds
from agent.config import StationConfig
from agent.errors import AgentError, BadInput, DeviceFault, Refused
from agent.messages import ArmCommand, ArmDrive, ArmReport, Drive, Joints, Tick
from agent.modes import Mode
from agent.policy_messages import LoadPolicy, PolicyCommand, PolicyReport, PolicyState, StartTask, StopTask
from agent.telemetry import logger

LOAD_S: Final = 600.0
"""A 450 M policy is read, compared with lerobot's own prediction and warmed up in some minutes on a small board."""

START_S: Final = 20.0
"""A policy process that has just died is back in a moment; at the start of the agent it comes after the cameras."""

LOOK_S: Final = 0.2


class TaskState(StrEnum):
    RUNNING = "running"
    TAKEN_OVER = "taken over"  # a person teleoperates; teleop stop gives it back


@dataclass(frozen=True)
class TaskPlan:
    """What `task start` asked for."""

    text: str
    policy: str
    duration_s: float | None = None  # None: until stopped
    record: bool = False
    unattended: bool = False  # goes on when whoever started it from a distance is not heard any more


class Host(Protocol):
    """What a task needs of its station."""

    async def ask_arm(self, command: ArmCommand) -> ArmReport: ...

    async def ask_policy(self, command: PolicyCommand) -> PolicyReport: ...

    def policy_report(self) -> PolicyReport | None: ...


type Progress = Callable[[dict[str, Any]], Awaitable[None]]


class Task:
    """One task under way. The station owns it, and says when the arm has left it."""

    def __init__(self, plan: TaskPlan, host: Host, config: StationConfig, clock: Clock) -> None:
        self.plan = plan
        self.state = TaskState.RUNNING
        self.generation = 0
        self.over: str | None = None  # why
        self.interventions = 0
        self._host = host
        self._takeover_deg = config.policy.takeover_deg
        self._clock = clock
        self._started_ns = clock.now_ns()
        self._leader: Joints | None = None  # where it was when this generation began

    async def run(self) -> None:
        """Let the policy have the arm, as a new generation. Raises what the policy or the arm answers."""
        self.generation = self._clock.now_ns()  # larger than any before, also after a restart
        self.state, self._leader = TaskState.RUNNING, None
        await self._host.ask_policy(StartTask(self.plan.text, self.generation))
        try:
            await self._host.ask_arm(ArmDrive(Drive.EXECUTE, f"task {self.plan.text!r}", self.generation))
        except AgentError:
            await self.silence("the arm refused")
            raise

    async def take_over(self, cause: str) -> None:
        """Give the arm to the leader. The policy is silent before it moves."""
        await self._host.ask_arm(ArmDrive(Drive.ALIGN, cause))  # this closes the generation
        self.state = TaskState.TAKEN_OVER
        self.interventions += 1
        await self.silence(cause)

    async def hold(self, cause: str) -> None:
        """Take the arm back from the policy, or from the person who took over. Raises what the arm answers."""
        logger.info("task over", task=self.plan.text, cause=cause, interventions=self.interventions)
        await self._host.ask_arm(ArmDrive(Drive.HOLD, cause))

    async def silence(self, cause: str) -> None:
        """Tell the policy to stop. It may be gone already; the arm takes nothing of an old generation anyway."""
        with contextlib.suppress(AgentError):
            await self._host.ask_policy(StopTask(cause))

    def taken_by(self, tick: Tick) -> bool:
        """Whether a person has moved the leader so far that they must want the arm."""
        if self._takeover_deg is None or self.state is not TaskState.RUNNING or tick.generation != self.generation:
            return False
        if tick.leader is None:
            return False
        self._leader = self._leader or tick.leader
        return max(abs(now - then) for now, then in zip(tick.leader, self._leader, strict=True)) > self._takeover_deg

    @property
    def due(self) -> bool:
        """Whether its time is up. Time runs while a person has the arm, too, but does not end the task then."""
        if self.plan.duration_s is None or self.state is TaskState.TAKEN_OVER:
            return False
        return self._clock.now_ns() - self._started_ns > nanoseconds(self.plan.duration_s)

    def status(self) -> dict[str, Any]:
        return {
            "task": self.plan.text,
            "policy": self.plan.policy,
            "state": self.state,
            "seconds": round(seconds(self._clock.now_ns() - self._started_ns), 1),
            "duration_s": self.plan.duration_s,
            "interventions": self.interventions,
            "recording": self.plan.record,
            "unattended": self.plan.unattended,
        }


async def load(name: str, host: Host, progress: Progress) -> PolicyReport:
    """Have the policy loaded and ready. Raises BadInput with the reason when it cannot be."""
    with contextlib.suppress(TimeoutError):  # the question below says it better
        async with asyncio.timeout(START_S):
            while host.policy_report() is None:
                await progress({"loading": name, "reason": "the policy process is starting"})
                await asyncio.sleep(LOOK_S)
    report = await host.ask_policy(LoadPolicy(name))
    pid = report.pid
    async with asyncio.timeout(LOAD_S):
        while report.policy == name and report.state is PolicyState.LOADING:
            await progress({"loading": name, "reason": report.reason})
            await asyncio.sleep(LOOK_S)
            latest = host.policy_report()
            if latest is not None and latest.at_ns > report.at_ns:
                report = latest
            if latest is None or latest.pid != pid:
                raise DeviceFault("The policy process ended while it was loading.", "The log shows why.")
    if report.policy != name or report.state is PolicyState.EMPTY:
        raise BadInput(f"The policy {name} cannot be used: {report.reason}", "See `so-agent policy verify`.")
    return report


def require_idle_hands(mode: Mode) -> None:
    """Raises Refused while a person teleoperates: they have the arm, and priority."""
    if mode in (Mode.TELEOP, Mode.ALIGNING):
        raise Refused(f"A person has the arm: the station is in mode {mode}.", "Run `so-agent teleop stop` first.")
