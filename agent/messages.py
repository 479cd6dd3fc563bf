"""The messages that cross process boundaries; those of the policy are in `agent.policy_messages`.

Bodies are msgpack, decoded straight into these types by msgspec: an unknown tag, a missing field or a
wrong type is a decode error, never a half-filled object. Images travel as a raw buffer in the message
part after their header. Nothing here is ever pickled.

Units, everywhere: body joints in degrees about the calibrated middle, gripper in percent (0 closed,
100 open), times in nanoseconds of CLOCK_MONOTONIC, temperatures in degrees Celsius, voltages in volts,
load in percent of stall torque.
"""

from enum import StrEnum
from typing import Final

import msgspec

JOINTS: Final = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")

type Joints = tuple[float, float, float, float, float, float]
"""One value per joint, in the order of `JOINTS`."""

PROTOCOL_VERSION: Final = 1
"""Bumped when a message changes incompatibly; peers with another version are refused."""


class Drive(StrEnum):
    """What the arm process is doing with the follower arm, tick by tick."""

    OFFLINE = "offline"  # the bus does not answer; reconnecting
    LIMP = "limp"  # torque off on every servo
    HOLD = "hold"  # torque on, last command repeated
    ALIGN = "align"  # moving slowly onto the leader's pose before following it
    FOLLOW = "follow"  # following the leader
    EXECUTE = "execute"  # taking actions from the chunk queue
    PARK = "park"  # moving slowly to the park pose, then limp
    ESTOP = "estop"  # latched stop; only a reset leaves it


class Source(StrEnum):
    """Where the action of a tick came from."""

    NONE = "none"  # nothing was sent
    HOLD = "hold"
    LEADER = "leader"
    POLICY = "policy"
    PARK = "park"
    ALIGN = "align"


class Limit(msgspec.Struct, frozen=True, array_like=True):
    """One change the safety filter made to one joint of one action."""

    joint: str
    kind: str  # "range" or "speed"
    wanted: float
    sent: float


class Tick(msgspec.Struct, frozen=True, tag="tick"):
    """One turn of the control loop, published on `arm.pub`.

    `measured` is what the servos reported at `read_ns`; None when the read failed (never an old value).
    `sent` is what was written to the goal registers in this tick; None when nothing was written.
    """

    seq: int
    due_ns: int  # the absolute deadline of this tick
    read_ns: int  # when the joint read finished
    drive: Drive
    source: Source
    measured: Joints | None = None
    leader: Joints | None = None
    requested: Joints | None = None
    sent: Joints | None = None
    limits: tuple[Limit, ...] = ()
    late_ns: int = 0  # how long after due_ns the loop woke
    generation: int = 0  # of the task that has the arm; 0 outside EXECUTE
    plan_ns: int | None = None  # where this tick stands on the task's own time, which stands still while starved


class ServoHealth(msgspec.Struct, frozen=True):
    """Last polled health of one servo. None means it was never read."""

    name: str
    id: int
    status_bits: int | None = None  # register 65: 1 voltage, 2 angle, 4 heat, 8 current, 32 overload
    temperature_c: float | None = None
    voltage_v: float | None = None
    load_pct: float | None = None
    torque_on: bool | None = None
    alarms: tuple[str, ...] = ()


class LoopStats(msgspec.Struct, frozen=True):
    """Timing of the control loop over the last window."""

    rate_hz: float
    period_error_p50_ms: float
    period_error_p99_ms: float
    period_error_max_ms: float
    overruns: int  # ticks that were skipped because an earlier one took too long, since start
    scheduling: str  # "SCHED_FIFO 10", or why not


class Execution(msgspec.Struct, frozen=True):
    """How the chunk queue does in one generation. Seams are steps in degrees (gripper: percent) beyond what the
    chunks themselves ask for, where one chunk goes over into the next."""

    generation: int
    chunks: int = 0  # taken into the schedule
    dropped: dict[str, int] = {}  # reason -> chunks that were not
    depth: int = 0  # actions that lie ahead
    ticks: int = 0  # since the first chunk came
    starved_ticks: int = 0  # of those, without an action
    starving_s: float = 0.0  # now, without a break; also before the first chunk
    starved: bool = False  # for longer than policy.starve_alarm_s
    seam: float = 0.0  # of the last merge
    seam_max: float = 0.0


class ArmReport(msgspec.Struct, frozen=True, tag="arm"):
    """State of the arm process: published on `arm.pub` on change and twice a second, and the reply to
    every accepted arm command."""

    at_ns: int
    pid: int
    drive: Drive
    reason: str  # why it is in this drive, one sentence
    bus_connected: bool
    leader_connected: bool
    leader_reason: str = ""
    torque_on: bool = False
    estop_verified: bool | None = None  # None: no e-stop active; True: read back from the servos
    measured: Joints | None = None
    sent: Joints | None = None
    servos: tuple[ServoHealth, ...] = ()
    loop: LoopStats | None = None
    ticks: int = 0
    bus_errors: int = 0  # failed reads since start
    reconnects: int = 0
    limited: int = 0  # ticks in which the safety filter changed the action, since start
    supervisor_lost: bool = False
    config_hash: str = ""
    execution: Execution | None = None  # of the last task since the process began


# --- commands to the arm process, on `arm.ctl` --------------------------------------------------------


class ArmHeartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """The supervisor lives. Without one for SUPERVISOR_LOST_S the arm holds."""


class ArmDrive(msgspec.Struct, frozen=True, tag="drive"):
    """Ask for another drive: HOLD, ALIGN (then FOLLOW by itself), EXECUTE, PARK or LIMP.

    EXECUTE takes chunks of `generation` only, which must be larger than any before.
    """

    drive: Drive
    cause: str
    generation: int = 0


class ArmEstop(msgspec.Struct, frozen=True, tag="estop"):
    """Stop now and latch. Accepted in every drive, from anyone who may open the socket."""

    cause: str


class ArmReset(msgspec.Struct, frozen=True, tag="reset"):
    """Clear the latch, after which the arm holds (torque on) or stays limp (torque off)."""

    cause: str


class ArmHandover(msgspec.Struct, frozen=True, tag="handover"):
    """Exit and leave torque as it is, so that a successor adopts the arm without a jerk."""

    cause: str


class ArmShutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Hold, park, torque off, exit."""

    cause: str


class ArmQuery(msgspec.Struct, frozen=True, tag="query"):
    """Reply with a report, change nothing."""


type ArmCommand = ArmHeartbeat | ArmDrive | ArmEstop | ArmReset | ArmHandover | ArmShutdown | ArmQuery


class Problem(msgspec.Struct, frozen=True, tag="problem"):
    """Reply to a command that was not carried out. `code` is one of `agent.errors.FAMILY`."""

    code: str
    message: str
    hint: str = ""


# --- cameras -------------------------------------------------------------------------------------------


class FrameHeader(msgspec.Struct, frozen=True, tag="frame"):
    """Goes before the raw RGB8 buffer of one frame (height * width * 3 bytes, row-major)."""

    camera: str
    seq: int  # counts distinct frames since the camera process connected; gaps are lost frames
    capture_ns: int  # when the driver handed the frame over
    width: int
    height: int


class CameraState(StrEnum):
    CONNECTING = "connecting"
    STREAMING = "streaming"
    FROZEN = "frozen"  # frames arrive, but they are byte-identical
    STALLED = "stalled"  # no frame arrives


class CameraReport(msgspec.Struct, frozen=True, tag="camera"):
    """State of one camera process, published beside its frames on change and once a second."""

    camera: str
    at_ns: int
    pid: int
    state: CameraState
    reason: str = ""
    frames: int = 0
    fps: float = 0.0
    last_capture_ns: int | None = None
    width: int = 0
    height: int = 0


# --- recorder ------------------------------------------------------------------------------------------


class EpisodeSource(StrEnum):
    TELEOP = "teleop"
    POLICY = "policy"
    INTERVENTION = "intervention"  # a policy episode in which a person took over


class RecorderState(StrEnum):
    STARTING = "starting"  # importing, repairing
    READY = "ready"
    RECORDING = "recording"
    COMMITTING = "committing"


class StartEpisode(msgspec.Struct, frozen=True, tag="start"):
    task: str
    source: EpisodeSource = EpisodeSource.TELEOP
    max_s: float | None = None  # finish by itself after this many seconds of frames


class FinishEpisode(msgspec.Struct, frozen=True, tag="finish"):
    """Commit the running episode. `success` None means: not judged."""

    success: bool | None = None


class DiscardEpisode(msgspec.Struct, frozen=True, tag="discard"):
    cause: str = ""


class MarkEpisode(msgspec.Struct, frozen=True, tag="mark"):
    """Judge a committed episode afterwards."""

    episode: int
    success: bool | None


class HideEpisode(msgspec.Struct, frozen=True, tag="hide"):
    """Delete a committed episode, or restore it: it is hidden from lists and training, its files stay."""

    episode: int
    deleted: bool


class RecorderQuery(msgspec.Struct, frozen=True, tag="query"):
    pass


class RecorderShutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Commit what runs and exit."""


type RecorderCommand = (
    StartEpisode | FinishEpisode | DiscardEpisode | MarkEpisode | HideEpisode | RecorderQuery | RecorderShutdown
)


class EpisodeResult(msgspec.Struct, frozen=True):
    """What became of the last episode that ended."""

    episode: int | None  # index in the dataset; None when it was not committed
    task: str
    frames: int
    outcome: str  # "committed", "discarded", "rejected" or "salvaged"
    reason: str = ""
    repeats: dict[str, int] = {}  # per camera, rows that repeat an older frame
    stop_to_readable_s: float | None = None


class RecorderReport(msgspec.Struct, frozen=True, tag="recorder"):
    """Published on `recorder.pub` on change and twice a second, and the reply to accepted commands."""

    at_ns: int
    pid: int
    state: RecorderState
    reason: str = ""
    task: str | None = None
    frames: int = 0  # rows of the running episode
    seconds: float = 0.0
    repeats: dict[str, int] = {}
    episodes: int = 0  # committed in the dataset
    salvaged: int = 0  # episodes repaired at start
    free_bytes: int = 0
    dataset: str = ""
    last: EpisodeResult | None = None


type ArmReply = ArmReport | Problem
type RecorderReply = RecorderReport | Problem


def encode(message: msgspec.Struct) -> bytes:
    return _ENCODER.encode(message)


_ENCODER = msgspec.msgpack.Encoder()
