"""What a policy process is told and what it says. Units and encoding as in `agent.messages`."""

from enum import StrEnum

import msgspec

from agent.messages import Joints, Problem


class Chunk(msgspec.Struct, frozen=True, tag="chunk"):
    """Actions for a stretch of a task's own time, published on `policy.pub` for the arm.

    Action i belongs to `start_ns + i * period_ns` on the time scale of `Tick.plan_ns`. A chunk of another
    generation than the arm's is dropped, wherever it is.
    """

    generation: int
    seq: int  # counts the chunks of a generation, from 0
    start_ns: int
    period_ns: int
    actions: tuple[Joints, ...]
    policy: str  # name and hash of the bundle
    observed_ns: int  # when the joints of its observation were read


class PolicyState(StrEnum):
    EMPTY = "empty"  # no policy is loaded
    LOADING = "loading"  # reading, checking the engine against the reference, warming up
    READY = "ready"
    RUNNING = "running"  # a task runs


class LoadPolicy(msgspec.Struct, frozen=True, tag="load"):
    """Load a bundle of the station; answered at once, then watch the reports. Loading what is loaded does nothing."""

    policy: str


class StartTask(msgspec.Struct, frozen=True, tag="start"):
    """Send chunks for this task as soon as the arm's ticks carry this generation."""

    task: str
    generation: int


class StopTask(msgspec.Struct, frozen=True, tag="stop"):
    cause: str


class UnloadPolicy(msgspec.Struct, frozen=True, tag="unload"):
    """Free the memory. Refused while a task runs."""


class PolicyQuery(msgspec.Struct, frozen=True, tag="query"):
    pass


class PolicyShutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    pass


type PolicyCommand = LoadPolicy | StartTask | StopTask | UnloadPolicy | PolicyQuery | PolicyShutdown


class PolicyReport(msgspec.Struct, frozen=True, tag="policy"):
    """Published on `policy.pub` on change and twice a second, and the reply to accepted commands.

    Delays are from an observation to its chunk being sent; warm-up never counts.
    """

    at_ns: int
    pid: int
    state: PolicyState
    reason: str = ""
    policy: str | None = None  # name of the bundle that is loaded, or was to be
    hash: str | None = None  # of its manifest
    engine: str | None = None  # and where it runs, if that is not here
    deviation: float | None = None  # from lerobot's own prediction, largest of all joints; degrees or percent
    options: tuple[str, ...] = ()  # what makes it differ from the reference on purpose
    cameras: tuple[str, ...] = ()  # of the station, in the policy's order
    task: str | None = None
    generation: int = 0
    chunks: int = 0  # of this generation
    failures: int = 0  # predictions that were refused or lost, of this generation
    inference_s: float | None = None  # of the last prediction alone
    delay_p50_s: float | None = None
    delay_p95_s: float | None = None
    horizon_s: float | None = None  # what one chunk covers
    verdict: str = ""  # whether starvation is to be expected


type PolicyReply = PolicyReport | Problem
