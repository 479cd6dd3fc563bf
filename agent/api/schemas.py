"""What a remote surface may ask of a station, and what it answers: one set of models for HTTP and MQTT.

A request model checks shapes and ranges that never depend on the station. What does (the mode, the longest episode
of this configuration, whether a policy exists) is checked by the daemon, whose answer goes back as it is.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from agent.config import NAME_PATTERN
from agent.errors import BadInput
from agent.modes import Mode
from agent.task_text import POLICY_TEXT_MAX_CHARS, TASK_MAX_CHARS, check_task

CAUSE_MAX_CHARS: Final = 200
MAX_EPISODES: Final = 10_000
LONGEST_EPISODE_S: Final = 3600.0
LONGEST_TASK_S: Final = 86_400.0
MAX_EPISODE_NUMBER: Final = 2**31 - 1


class Access(StrEnum):
    """What somebody needs, to ask for something."""

    LOOK = "look"  # whoever may see the station
    STOP = "stop"  # the same: everybody who can see the arm may stop it
    CONTROL = "control"  # a token that may control
    MOVE = "move"  # that, and the lease: it may move the arm


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("use one line of printable text")
    return text


def _task_text(text: str) -> str:
    try:
        return check_task(text, POLICY_TEXT_MAX_CHARS)
    except BadInput as error:
        raise ValueError(str(error)) from error


def _episode_text(text: str) -> str:
    try:
        return check_task(text, TASK_MAX_CHARS)
    except BadInput as error:
        raise ValueError(str(error)) from error


Cause = Annotated[str, Field(max_length=CAUSE_MAX_CHARS), AfterValidator(_one_line)]
EpisodeNumber = Annotated[int, Field(ge=0, le=MAX_EPISODE_NUMBER, description="Index in the dataset, from 0.")]
Judgement = Annotated[bool | None, Field(description="true: a success; false: a failure; null: not judged.")]


class Request(BaseModel):
    """Arguments of one verb. Unknown keys and values of another type are refused, never converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def args(self) -> dict[str, Any]:
        """For `Station.handle`."""
        return self.model_dump(mode="json", exclude_none=True)


class Nothing(Request):
    """Takes no arguments."""


class Estop(Request):
    cause: Annotated[Cause, Field(description="Kept in the log and shown until the reset.")] = "e-stop from a distance"


class Release(Request):
    confirm: Annotated[Literal[True], Field(description="Somebody holds the arm: it DROPS when torque goes off.")]

    def args(self) -> dict[str, Any]:
        return {}


class RecordStart(Request):
    task: Annotated[
        str,
        Field(min_length=1, max_length=TASK_MAX_CHARS, description="What the arm does, e.g. `pick up the red cube`."),
        AfterValidator(_episode_text),
    ]
    episodes: Annotated[int, Field(ge=1, le=MAX_EPISODES)] = 1
    episode_s: Annotated[
        float | None,
        Field(ge=1, le=LONGEST_EPISODE_S, description="Length of each; must be given for more than one episode."),
    ] = None
    reset_s: Annotated[float, Field(ge=0, le=3600, description="Between two episodes, to put things back.")] = 5.0


class RecordStop(Request):
    success: Judgement = None


class TaskStart(Request):
    task: Annotated[
        str,
        Field(min_length=1, max_length=POLICY_TEXT_MAX_CHARS, description="The policy reads it."),
        AfterValidator(_task_text),
    ]
    policy: Annotated[
        str | None, Field(pattern=NAME_PATTERN, description="null: the one in use, see `so-agent policy use`.")
    ] = None
    duration_s: Annotated[
        float | None, Field(ge=1, le=LONGEST_TASK_S, description="Stop and hold after this; null: until stopped.")
    ] = None
    record: Annotated[bool, Field(description="Record it as one episode.")] = False
    unattended: Annotated[
        bool, Field(description="Go on when control is given back or lost; else the arm holds then.")
    ] = False


class TaskStop(Request):
    success: Judgement = None


class Episode(Request):
    episode: EpisodeNumber


class EpisodeMark(Request):
    episode: EpisodeNumber
    success: Judgement

    def args(self) -> dict[str, Any]:
        return {"episode": self.episode, "success": self.success}


class Reply(BaseModel):
    """Answers may carry more keys than are documented here; those that are keep their name, type and meaning."""

    model_config = ConfigDict(extra="allow")


class Problem(Reply):
    """What went wrong (RFC 9457), in a sentence for a person; `hint` says what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: Annotated[str, Field(description="The same codes as the command line's: `refused`, `bad-input`, ...")]
    hint: str = ""


class ModeReply(Reply):
    mode: Mode
    reason: str


class Loop(Reply):
    rate_hz: float
    period_error_p50_ms: float
    period_error_p99_ms: float
    period_error_max_ms: float
    overruns: int
    scheduling: str


class Arm(Reply):
    drive: str
    reason: str
    pid: int
    bus_connected: bool
    leader_connected: bool
    leader_reason: str
    torque_on: bool
    estop_verified: bool | None
    measured: list[float] | None
    sent: list[float] | None
    loop: Loop | None
    ticks: int
    bus_errors: int
    reconnects: int
    limited: int
    supervisor_lost: bool


class Servo(Reply):
    id: int
    status_bits: int | None
    temperature_c: float | None
    voltage_v: float | None
    load_pct: float | None
    torque_on: bool | None
    alarms: list[str]


class CameraStatus(Reply):
    state: Literal["connecting", "streaming", "frozen", "stalled", "down"]
    reason: str
    age_ms: float | None
    fps: float | None = None
    frames: int | None = None
    width: int | None = None
    height: int | None = None
    view: str | None = None


class Recorder(Reply):
    state: str
    reason: str
    task: str | None
    frames: int
    seconds: float
    episodes: int
    salvaged: int
    free_bytes: int
    dataset: str


class RecordingStatus(Reply):
    task: str
    source: str
    phase: Literal["episode", "reset"]
    episode: Annotated[int, Field(description="Counted from 1.")]
    episodes: int
    frames: int
    seconds: float
    repeats: dict[str, int]
    committed: int


class TaskStatus(Reply):
    task: str
    policy: str
    state: Literal["running", "taken over"]
    seconds: float
    duration_s: float | None
    interventions: int
    recording: bool
    unattended: Annotated[bool, Field(description="Goes on when control is given back or lost.")]


class Child(Reply):
    pid: int | None
    restarts: int
    last_exit: str | None
    failed: str | None


class LeaseStatus(Reply):
    """Who has control from a distance."""

    owner: str
    via: str | None
    ttl_s: float
    seconds: float
    moves: Annotated[bool, Field(description="Whether the arm moves for them, and holds when they are gone.")]


class Status(Reply):
    """As `so-agent status --json`. Joints: shoulder_pan, shoulder_lift, elbow_flex, wrist_flex, wrist_roll (degrees),
    gripper (percent)."""

    station: str
    version: str
    config_hash: str
    uptime_s: float
    mode: Mode
    reason: str
    lease: LeaseStatus | None
    loading: Annotated[str | None, Field(description="The policy that a task waits for, before it begins.")]
    recording: RecordingStatus | None
    task: TaskStatus | None
    last_task: TaskStatus | None
    arm: Arm | None
    servos: dict[str, Servo] | None
    cameras: dict[str, CameraStatus] | None
    recorder: Recorder | None
    policy: dict[str, Any] | None
    federation: dict[str, Any] | None
    children: dict[str, Child]


class EpisodeSummary(Reply):
    episode: int
    task: str
    frames: int
    seconds: float
    source: str
    success: bool | None
    salvaged: bool
    deleted: bool = False


class Stopped(Reply):
    verified: Annotated[bool | None, Field(description="Read back from the servos.")]


class RecordingReply(Reply):
    recording: RecordingStatus


class EpisodeResult(Reply):
    episode: Annotated[int | None, Field(description="null when it was not committed.")]
    frames: int
    outcome: Annotated[str, Field(description="`committed`, `discarded`, `rejected` or `salvaged`.")]
    reason: str
    repeats: dict[str, int]
    stop_to_readable_s: float | None


class SessionReply(Reply):
    task: str
    problem: str
    results: list[EpisodeResult]


class TaskReply(ModeReply):
    task: TaskStatus | None


class EpisodesReply(Reply):
    episodes: list[EpisodeSummary]


class EpisodeReply(Reply):
    """`episode` holds at least the keys of a summary; docs/dataset.md lists the others."""

    episode: EpisodeSummary


@dataclass(frozen=True)
class Verb:
    """One thing that can be asked of a station."""

    request: type[Request]
    access: Access
    summary: str
    reply: type[Reply] = ModeReply


VERBS: Final[dict[str, Verb]] = {
    "status": Verb(Nothing, Access.LOOK, "The whole station in one object.", Status),
    "estop": Verb(Estop, Access.STOP, "Emergency stop: latched, read back from the servos.", Stopped),
    "hold": Verb(Nothing, Access.CONTROL, "Stop moving, with torque on."),  # switches it on, if the arm was limp
    "teleop.start": Verb(Nothing, Access.MOVE, "Move slowly onto the leader's pose, then follow it."),
    "teleop.stop": Verb(
        Nothing, Access.STOP, "Stop following; the arm holds. A task that was taken over goes on, which needs control."
    ),
    "park": Verb(Nothing, Access.MOVE, "Move slowly to the park pose, then switch torque off."),
    "release": Verb(Release, Access.MOVE, "Switch torque off right here. The arm drops."),
    "reset": Verb(Nothing, Access.MOVE, "Clear an e-stop or a fault after its reason is gone."),
    "task.start": Verb(TaskStart, Access.MOVE, "Let the arm do a task by itself, with a policy.", TaskReply),
    "task.stop": Verb(TaskStop, Access.STOP, "End the task and hold the arm where it is.", TaskReply),
    "record.start": Verb(RecordStart, Access.MOVE, "Record while the arm is teleoperated or executes.", RecordingReply),
    "record.stop": Verb(RecordStop, Access.STOP, "Commit the running episode and end the session.", SessionReply),
    "record.discard": Verb(Nothing, Access.MOVE, "Throw the running episode away and end the session.", SessionReply),
    "record.rerecord": Verb(
        Nothing, Access.MOVE, "Throw it away and record it again after the reset time.", RecordingReply
    ),
    "episodes.list": Verb(Nothing, Access.LOOK, "What was recorded.", EpisodesReply),
    "episodes.show": Verb(Episode, Access.LOOK, "Everything known about one episode.", EpisodeReply),
    "episodes.mark": Verb(EpisodeMark, Access.CONTROL, "Judge an episode afterwards.", EpisodeReply),
    "episodes.delete": Verb(Episode, Access.CONTROL, "Hide an episode from lists and from training.", EpisodeReply),
    "episodes.restore": Verb(Episode, Access.CONTROL, "Bring a deleted episode back.", EpisodeReply),
}
"""What surfaces over a network offer. `shutdown` and everything else is for this machine's own command line."""
