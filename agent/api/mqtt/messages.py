"""What is published and taken on the broker. JSON, checked by these models on both sides.

The JSON schemas in docs/schemas/ are made from them.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from agent.api.schemas import Status
from agent.messages import Joints
from agent.modes import Mode

PAYLOAD_MAX_BYTES: Final = 8192
"""The largest request holds a few hundred bytes; the broker is told not to send more than this."""

MESSAGE_MAX_BYTES: Final = 48 * 1024
"""Of what is published. A broker cuts the connection of who sends more than its max_packet_size (configs/mosquitto)."""

REASON_MAX_CHARS: Final = 1000

BYTES_PER_GB: Final = 10**9

ID_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._:-]{7,63}$"
"""Room for a UUID, a ULID or `ha-` and a time; nothing that could not be printed in a log."""


class _Message(BaseModel):
    """Keys may be added; those that are there keep their name, type and meaning."""

    model_config = ConfigDict(frozen=True)


class Command(_Message):
    """Asks a station for something, on `cmd/VERB`. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    id: Annotated[str, Field(pattern=ID_PATTERN, description="Chosen by the sender, never used twice.")]
    issued_at: Annotated[AwareDatetime, Field(description="When it was meant. ISO 8601 with an offset.")]
    expires_at: Annotated[AwareDatetime, Field(description="From then on it must not be carried out.")]
    args: Annotated[
        dict[str, JsonValue], Field(description="Of the verb; the lease of one who moves the arm too.")
    ] = {}


class Ack(_Message):
    """What became of a command, on `ack` or on its response topic. Exactly one `done` or `refused` a command."""

    id: Annotated[str | None, Field(description="The command's; null when it could not be read.")]
    verb: str
    status: Literal["progress", "done", "refused"]
    at: str
    result: dict[str, Any] | None = None
    code: Annotated[str | None, Field(description="Of the reason, for programs; see docs/mqtt.md.")] = None
    message: Annotated[str, Field(description="What is wrong, a sentence.")] = ""
    hint: Annotated[str, Field(description="What to do about it.")] = ""


class Online(_Message):
    """Retained on `online`; the broker publishes the last will, `online: false`, when the station is gone."""

    online: bool
    at: Annotated[str | None, Field(description="Null in the last will: nobody knows when it will be.")] = None
    version: str = ""
    reason: str = ""


class Telemetry(_Message):
    """Numbers that change all the time, on `telemetry`, QoS 0. Joints in degrees, the gripper in percent."""

    at: str
    drive: str
    measured: Joints | None = None
    sent: Joints | None = None
    rate_hz: float | None = None
    period_error_p99_ms: float | None = None
    temperature_c: Annotated[dict[str, float], Field(description="Of each servo.")] = {}
    load_pct: dict[str, float] = {}
    voltage_v: Annotated[float | None, Field(description="The lowest of all servos.")] = None
    queue_depth: Annotated[int | None, Field(description="Actions that lie ahead of a running task.")] = None
    starved: bool = False


class Recording(_Message):
    task: str
    source: str
    phase: str
    episode: Annotated[int, Field(description="Counted from 1.")]
    episodes: int
    committed: int


class Task(_Message):
    task: str
    policy: str
    state: str
    recording: bool


class State(_Message):
    """What a station is doing, retained on `state`: published on change, at most once a second.

    `cmd/status` answers with everything.
    """

    at: str
    reachable: Annotated[bool, Field(description="False: the agent behind this connection does not answer.")]
    mode: Mode | None = None
    reason: str = ""
    version: str = ""
    config_hash: str = ""
    torque_on: bool | None = None
    estop_verified: Annotated[bool | None, Field(description="Null without an e-stop.")] = None
    recording: Recording | None = None
    task: Task | None = None
    policy: str | None = None
    federation: Annotated[str | None, Field(description="What it does there; null: not enrolled.")] = None
    lease: Annotated[str | None, Field(description="Who has taken control; null: nobody from afar.")] = None
    cameras: Annotated[dict[str, str], Field(description="Name to state, e.g. `streaming`.")] = {}
    alarms: Annotated[list[str], Field(description="Of the servos, each with its name.")] = []
    failed: Annotated[list[str], Field(description="Processes that were given up.")] = []
    hottest_c: Annotated[int | None, Field(description="The hottest servo.")] = None
    episodes: Annotated[int | None, Field(description="Committed in the dataset.")] = None
    free_gb: int | None = None

    @classmethod
    def of(cls, status: Status, at: str) -> Self:
        """What of a station's status changes now and then, not all the time."""
        servos, recording, task = status.servos or {}, status.recording, status.task
        temperatures = [servo.temperature_c for servo in servos.values() if servo.temperature_c is not None]
        federation = status.federation
        return cls(
            at=at,
            reachable=True,
            mode=status.mode,
            reason=status.reason[:REASON_MAX_CHARS],
            version=status.version,
            config_hash=status.config_hash,
            torque_on=status.arm.torque_on if status.arm else None,
            estop_verified=status.arm.estop_verified if status.arm else None,
            recording=Recording.model_validate(recording, from_attributes=True) if recording else None,
            task=Task.model_validate(task, from_attributes=True) if task else None,
            policy=status.policy.get("policy") if status.policy else None,
            federation=str(federation.get("state", "enrolled")) if federation else None,
            lease=status.lease.owner if status.lease else None,
            cameras={name: camera.state for name, camera in (status.cameras or {}).items()},
            alarms=[f"{name}: {alarm}" for name, servo in servos.items() for alarm in servo.alarms],
            failed=[name for name, child in status.children.items() if child.failed],
            hottest_c=round(max(temperatures)) if temperatures else None,
            episodes=status.recorder.episodes if status.recorder else None,
            free_gb=status.recorder.free_bytes // BYTES_PER_GB if status.recorder else None,
        )


class Event(_Message):
    """Something that happened, on `event`. Published at least once; `seq` never repeats, also after a restart."""

    seq: int
    at: str
    kind: str
    text: Annotated[str, Field(description="A sentence for people.")]
    data: Annotated[dict[str, Any], Field(description="The same for programs.")] = {}
    lost: Annotated[int, Field(description="Events just before this one that were forgotten.")] = 0


def stamp(wall_s: float) -> str:
    """ISO 8601 in UTC, milliseconds."""
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds")
