"""The configuration of one station: frozen, validated, and strict about unknown keys.

Read from YAML; every field can be overridden by the environment, e.g. `SO_AGENT__STATE_DIR=/data` or
`SO_AGENT__RECORDING__DATASET=kitchen`. All errors are reported at once, each with the file, the field's
path, what was found and what is allowed.
"""

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from agent.config_problems import problems
from agent.errors import BadInput
from agent.paths import Paths

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""Names become folder and topic names; this leaves no room for path tricks."""

CREDENTIALS = Path("/etc/so-agent/credentials")
"""One folder a station; the service sees copies of the files in it."""

CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
"""Set by systemd for services with LoadCredential."""

HOURS_PATTERN = r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$"
"""From and to, such as 22:00-06:00."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def _expanded(path: Path) -> Path:
    return path.expanduser()


UserPath = Annotated[Path, AfterValidator(_expanded)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArmPort(_Model):
    """One arm: where it is plugged in and which calibration belongs to it."""

    port: UserPath
    id: Name


class Robot(_Model):
    model: Literal["so100", "so101"]
    follower: ArmPort
    leader: ArmPort | None = None
    calibration_dir: UserPath  # laid out like lerobot's: robots/so_follower/ID.json, teleoperators/so_leader/ID.json
    control_hz: Annotated[int, Field(ge=10, le=200)] = 30
    bus_timeout_ms: Annotated[float, Field(ge=2, le=100)] = 15.0  # a six-servo read takes 0.6 ms on the wire
    realtime_priority: Annotated[int, Field(ge=0, le=50)] = 10  # SCHED_FIFO; 0 switches it off


class ParkPose(_Model):
    """Where the arm lies down before torque goes off. Degrees; gripper in percent."""

    shoulder_pan: Annotated[float, Field(ge=-110, le=110)] = 0.0
    shoulder_lift: Annotated[float, Field(ge=-110, le=110)] = -98.0
    elbow_flex: Annotated[float, Field(ge=-110, le=110)] = 95.0
    wrist_flex: Annotated[float, Field(ge=-110, le=110)] = 55.0
    wrist_roll: Annotated[float, Field(ge=-170, le=170)] = 0.0
    gripper: Annotated[float, Field(ge=0, le=100)] = 5.0


class Safety(_Model):
    max_speed_deg_s: Annotated[float, Field(gt=0, le=720)] = 240.0  # body joints, while following
    max_gripper_pct_s: Annotated[float, Field(gt=0, le=1000)] = 400.0
    slow_speed_deg_s: Annotated[float, Field(gt=0, le=90)] = 30.0  # aligning and parking
    range_margin_deg: Annotated[float, Field(ge=0, le=20)] = 1.0  # kept from the calibrated end stops
    stale_action_ms: Annotated[float, Field(ge=20, le=1000)] = 150.0  # older leader reads or actions hold the arm
    hold_park_after_s: Annotated[float, Field(ge=5)] | None = 60.0  # a hold without a supervisor parks after this
    estop: Literal["hold", "limp"] = "hold"  # limp drops the arm
    max_temperature_c: Annotated[float, Field(ge=40, le=80)] = 65.0
    min_voltage_v: Annotated[float, Field(ge=4, le=12)] = 4.5
    stall_load_pct: Annotated[float, Field(ge=20, le=100)] = 90.0
    stall_after_s: Annotated[float, Field(ge=0.2, le=30)] = 1.5
    park: ParkPose = ParkPose()


class Camera(_Model):
    """One camera. `type` names a camera registered with lerobot; `options` are that type's own fields."""

    view: Annotated[str, Field(pattern=r"^OBS_IMAGE_[1-9]$")]  # 1 top or front, 2 wrist, 3.. further
    type: Annotated[str, Field(min_length=1)]
    width: Annotated[int, Field(ge=64, le=4096)] = 640
    height: Annotated[int, Field(ge=48, le=4096)] = 480
    fps: Annotated[int, Field(ge=1, le=240)] = 30
    stale_ms: Annotated[float, Field(ge=50, le=5000)] = 200.0  # older than this is a repeat
    stall_s: Annotated[float, Field(ge=0.5, le=60)] = 2.0  # without a frame for this long: restarted
    frozen_s: Annotated[float, Field(ge=0.5, le=60)] = 2.0  # byte-identical frames for this long: frozen
    options: dict[str, Any] = {}


class Recording(_Model):
    dataset: Name = "episodes"
    fps: Annotated[int, Field(ge=1, le=100)] = 30
    vcodec: Literal["h264", "hevc", "libsvtav1"] = "h264"
    crf: Annotated[int, Field(ge=0, le=51)] = 23
    min_free_gb: Annotated[float, Field(ge=0)] = 2.0  # below this no new episode starts
    max_repeat_pct: Annotated[float, Field(ge=0, le=100)] = 20.0  # more repeated frames: episode rejected
    on_crash: Literal["salvage", "discard"] = "salvage"
    max_episode_s: Annotated[float, Field(gt=0, le=3600)] = 600.0


PORT_MAX = 65535

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _with_a_port(address: str) -> str:
    """zmq takes the remainder of a larger one, without a word."""
    if int(address.rpartition(":")[2]) > PORT_MAX:
        raise ValueError(f"a port is at most {PORT_MAX}")
    return address


class RemotePolicy(_Model):
    """A `so-agent policy serve` on another machine. Both sides know each other by their public keys."""

    address: Annotated[str, Field(pattern=r"^tcp://[^\s/]+:[1-9]\d{0,4}$"), AfterValidator(_with_a_port)]
    keys: UserPath  # made by `so-agent policy keygen`; holds station.key and server.pub
    timeout_s: Annotated[float, Field(ge=0.1, le=60)] = 5.0  # a chunk that takes longer is given up
    pictures: Literal["rgb8", "jpeg"] = "rgb8"  # as they are, 1.8 MB for two cameras; or a tenth of that


class Policy(_Model):
    """How policies run here. Which one: `so-agent task start --policy`, or the one chosen by `so-agent policy use`."""

    engine: Literal["auto", "reference", "exact", "bf16", "int8", "openvino", "cuda"] = "auto"
    max_deviation: Annotated[float, Field(gt=0, le=10)] = 1.0  # degrees or percent; an engine beyond it is refused
    threads: Annotated[int, Field(ge=1, le=256)] | None = None  # None: all cores but the one the arm needs
    merge: Literal["auto", "rtc", "crossfade"] = "auto"  # auto: rtc where the policy can
    crossfade_s: Annotated[float, Field(ge=0, le=2)] = 0.2
    max_seam_deg: Annotated[float, Field(gt=0, le=20)] = 2.0  # a tick; longer crossfade instead of a larger step
    replan_s: Annotated[float, Field(ge=0, le=10)] = 0.2  # predictions begin no closer together than this
    starve_alarm_s: Annotated[float, Field(ge=0.05, le=60)] = 0.5
    starve_stop_s: Annotated[float, Field(ge=0.1, le=600)] = 2.0
    hang_s: Annotated[float, Field(ge=1, le=600)] = 20.0  # a prediction that takes longer: the process is restarted
    roll_forward: bool = False  # condition on the pose at which the chunk will begin
    flow_steps: Annotated[int, Field(ge=1, le=100)] | None = None  # None: as trained
    reuse_vision: bool = False  # keep the features of a camera whose picture has not changed
    takeover_deg: Annotated[float, Field(gt=0, le=90)] | None = None  # leader movement that takes over; None: never
    remote: RemotePolicy | None = None
    synchronous: bool = False  # for experiments: observe only when all actions have run, as the simplest loops do
    extra_delay_s: Annotated[float, Field(ge=0, le=10)] = 0.0  # for experiments: added to every prediction

    @model_validator(mode="after")
    def _a_slow_server_is_no_hang(self) -> Self:
        if self.remote and self.remote.timeout_s >= self.hang_s:
            raise ValueError(f"policy.remote.timeout_s ({self.remote.timeout_s:g}) must be below policy.hang_s")
        return self


class Tls(_Model):
    """Certificate chain and private key, both PEM."""

    cert: UserPath
    key: UserPath


class Http(_Model):
    """The operator page and the HTTP API. Off unless this section is there; `{}` serves loopback only."""

    host: str = "127.0.0.1"  # another address needs tls, and people a token from `so-agent token`
    port: Annotated[int, Field(ge=1, le=PORT_MAX)] = 8642
    names: tuple[str, ...] = ()  # host names and addresses under which the page may be opened, besides loopback
    tls: Tls | None = None
    preview_fps: Annotated[float, Field(gt=0, le=10)] = 5.0
    preview_width: Annotated[int, Field(ge=64, le=1280)] = 480
    lease_s: Annotated[float, Field(ge=0.3, le=10)] = 0.4  # control that is not renewed for this long ends in HOLD
    login: Literal["network", "always"] = "network"  # always: people at this machine need a token, too
    remote_reset: bool = False  # whether an e-stop may be cleared from another machine

    @model_validator(mode="after")
    def _a_network_needs_tls(self) -> Self:
        if self.host not in LOOPBACK and self.tls is None:
            raise ValueError(f"http.host {self.host} is reachable by others: http.tls must be given")
        return self


class MqttTls(_Model):
    ca: UserPath
    cert: UserPath | None = None  # with key: the station proves who it is
    key: UserPath | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together; one of them is missing")
        return self


class Mqtt(_Model):
    """The broker of a fleet or of a home. Off unless this section is there."""

    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=PORT_MAX)] = 8883
    tls: MqttTls | None = None  # must be given unless the broker is on this machine
    username: str | None = None
    password_file: UserPath | None = None
    telemetry_hz: Annotated[float, Field(ge=0, le=10)] = 1.0
    commands: bool = True  # False: only publishes
    trust_clock: bool = False  # something that nobody can ask keeps this machine's clock right, e.g. a hypervisor
    home_assistant: bool = False  # announce the station to Home Assistant

    @model_validator(mode="after")
    def _a_network_needs_tls(self) -> Self:
        if self.host not in LOOPBACK and self.tls is None:
            raise ValueError(f"mqtt.host {self.host} is another machine: mqtt.tls must be given")
        return self


class FederatedPrivacy(_Model):
    """What this station insists on, whatever a run asks for; the stricter of both holds. See docs/federation.md."""

    clip: Annotated[float, Field(gt=0, le=1000)]  # the longest update that leaves, L2 norm
    noise: Annotated[float, Field(gt=0, le=1000)]  # standard deviation, as a multiple of the clip
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    max_epsilon: Annotated[float, Field(gt=0)] | None = None  # over all runs; after it nothing leaves


class Federation(_Model):
    """When this station may learn with others. Whether it does: `so-agent fl enroll` and `so-agent fl consent`."""

    idle_min: Annotated[float, Field(ge=0)] = 10.0  # minutes in which nobody wanted the arm
    hours: tuple[Annotated[str, Field(pattern=HOURS_PATTERN)], ...] = ()  # 22:00-06:00, local time; none: always
    min_free_memory_gb: Annotated[float, Field(ge=0)] | None = None  # None: what a trainer of the policy in use takes
    min_free_disk_gb: Annotated[float, Field(ge=0)] = 5.0
    max_servo_c: Annotated[float, Field(ge=20, le=80)] = 50.0
    memory_max_gb: Annotated[float, Field(gt=0)] | None = None  # of everything federated; None: half of the machine's
    threads: Annotated[int, Field(ge=1, le=256)] | None = None  # None: all cores but the one the arm needs
    keep_warm: bool = False  # half a gigabyte during a run, for trainers that begin without imports
    reply_within_s: Annotated[float, Field(ge=0, le=300)] = 30.0  # for partial work, when the arm is needed
    apps: tuple[
        Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...
    ] = ()  # SHA-256 of apps that may run, besides ours
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of episodes that is never learnt from
    share_statistics: bool = False  # count, mean and spread of the joints may leave, besides adapters and metrics
    privacy: FederatedPrivacy | None = None
    promote: bool = True  # a candidate that is not worse is used by itself, between tasks
    max_worse: Annotated[float, Field(ge=0, le=1)] = (
        0.02  # by so much a candidate may be off more than the policy in use
    )


class Logging(_Model):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"  # auto: console on a terminal, else JSON


class _YamlSource(PydanticBaseSettingsSource):
    """The parsed file, below the environment in priority."""

    def __init__(self, settings: type[BaseSettings], values: dict[str, Any]) -> None:
        super().__init__(settings)
        self._values = values

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


class StationConfig(BaseSettings):
    """Everything one station needs to know."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="SO_AGENT__", env_nested_delimiter="__")

    station: Name
    state_dir: UserPath
    run_dir: UserPath | None = None  # sockets; None: state_dir/run
    robot: Robot
    safety: Safety = Safety()
    cameras: dict[Name, Camera] = {}
    recording: Recording = Recording()
    policy: Policy = Policy()
    federation: Federation = Federation()
    http: Http | None = None
    mqtt: Mqtt | None = None
    logging: Logging = Logging()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_state_dir(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`{state_dir}` in any string stands for the folder, so that overriding one moves all. `{credentials}` is where
        the service manager shows this process what only root may read; `so-agent install` tells it what to show."""
        folder = str(Path(str(values.get("state_dir", "{state_dir}"))).expanduser())
        credentials = os.environ.get(CREDENTIALS_VARIABLE) or str(CREDENTIALS / str(values.get("station", "")))

        def fill(value: Any) -> Any:
            match value:
                case str():
                    return value.replace("{state_dir}", folder).replace("{credentials}", credentials)
                case dict():
                    return {key: fill(inner) for key, inner in value.items()}
                case _:
                    return value

        return {key: fill(value) for key, value in values.items()}

    @field_validator("cameras")
    @classmethod
    def _views_are_contiguous(cls, cameras: dict[str, Camera]) -> dict[str, Camera]:
        views = sorted(camera.view for camera in cameras.values())
        expected = [f"OBS_IMAGE_{number}" for number in range(1, len(views) + 1)]
        if views != expected:
            raise ValueError(f"views must be {', '.join(expected)}, each once; found {', '.join(views)}")
        return cameras

    @model_validator(mode="after")
    def _rates_fit(self) -> Self:
        if self.robot.control_hz % self.recording.fps:
            raise ValueError(
                f"robot.control_hz ({self.robot.control_hz}) must be a multiple of recording.fps "
                f"({self.recording.fps}), so that every row is one tick"
            )
        if self.robot.leader and self.robot.leader.port == self.robot.follower.port:
            raise ValueError("robot.leader.port and robot.follower.port are the same port")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load` hands the file's values as init arguments; the environment must win over them.
        file = _YamlSource(settings_cls, getattr(init_settings, "init_kwargs", {}))
        return env_settings, file

    @property
    def paths(self) -> Paths:
        return Paths(
            state=self.state_dir,
            run=self.run_dir or self.state_dir / "run",
            dataset=self.recording.dataset,
            calibration=self.robot.calibration_dir,
            follower=self.robot.follower.id,
            leader=self.robot.leader.id if self.robot.leader else None,
        )

    @property
    def hash(self) -> str:
        """Twelve hex digits that change with any setting; kept in every episode's metadata."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    def views(self) -> dict[str, str]:
        """Standard view name -> camera name, in the order of the views."""
        return {camera.view: name for name, camera in sorted(self.cameras.items(), key=lambda item: item[1].view)}


def load(path: Path) -> StationConfig:
    """Read and check a configuration file. Raises BadInput listing every error found."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"Cannot read {path}: {getattr(error, 'strerror', error)}.", "Give the path of a station.yaml file."
        ) from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadInput(
            f"{path}{place}: not valid YAML: {getattr(error, 'problem', None) or error}.",
            "Was the file cut off? Compare it with configs/so101/station.yaml.",
        ) from error
    if not isinstance(values, dict):
        raise BadInput(
            f"{path}: expected a mapping of settings, found {type(values).__name__}.",
            "Compare it with configs/so101/station.yaml.",
        )
    try:
        config = StationConfig(**{str(key): value for key, value in values.items()})
    except ValidationError as error:
        lines = problems(error)
        count = f"{len(lines)} error{'s' if len(lines) != 1 else ''}"
        raise BadInput(
            "\n".join([f"{path}: {count} in the configuration:", *lines]),
            "Correct these fields; configs/so101/station.yaml explains each one.",
        ) from error
    config.paths.check()
    return config
