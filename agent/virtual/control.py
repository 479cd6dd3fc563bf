"""What can be asked of a running virtual station, and how each request is carried out."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from agent.errors import BadInput
from agent.messages import JOINTS
from agent.virtual.arm import PlantThread, VirtualArm
from agent.virtual.cameras import CameraFault, Cameras
from agent.virtual.dynamics import Dynamics
from agent.virtual.faults import ArmName, ReplyFault, ReplyFaultKind, servo_id
from agent.virtual.operator import Operator, Task
from agent.virtual.scene import Pose2
from agent.virtual.servo import NOMINAL_VOLTAGE_V, Servo, Status


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class WholeArm(_Strict, frozen=True):
    arm: ArmName = "follower"


class Power(_Strict, frozen=True):
    on: bool
    arm: ArmName = "follower"


class ServoFault(_Strict, frozen=True):
    servo: int | str  # id or joint name
    arm: ArmName = "follower"
    on: bool = True  # false ends it


class Overheat(_Strict, frozen=True):
    servo: int | str
    arm: ArmName = "follower"
    on: bool = True
    celsius: Annotated[float, Meta(ge=0, le=150)] = 80.0


class Voltage(_Strict, frozen=True):
    volts: Annotated[float, Meta(ge=0, le=20)] | None  # null: back to normal
    arm: ArmName = "follower"
    servo: int | str | None = None  # null: the whole bus


class CameraRequest(_Strict, frozen=True):
    fault: CameraFault
    name: str | None = None  # null: every camera


class SceneRequest(_Strict, frozen=True):
    seed: int | None = None
    place: dict[str, Annotated[tuple[float, ...], Meta(min_length=2, max_length=3)]] = {}  # name -> x, y[, yaw]


class OperatorRequest(_Strict, frozen=True):
    pose: Annotated[tuple[float, ...], Meta(min_length=6, max_length=6)] | None = None
    task: Task | None = None
    disc: str | None = None  # which one the task is about; null: each in turn
    reach: str | None = None  # touch this disc once, from wherever the hand is, and stay


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"replug": "return"}):
    """One line of JSON. Any number of keys; they are carried out in the order given here."""

    clear: bool = False
    scene: SceneRequest | None = None
    operator: Literal["pause", "resume"] | OperatorRequest | None = None
    drop: ReplyFault | None = None
    corrupt: ReplyFault | None = None
    truncate: ReplyFault | None = None
    delay: ReplyFault | None = None
    garbage: ReplyFault | None = None
    vanish: WholeArm | None = None
    replug: WholeArm | None = None
    power: Power | None = None
    missing: ServoFault | None = None
    reboot: ServoFault | None = None
    overheat: Overheat | None = None
    overload: ServoFault | None = None
    stall: ServoFault | None = None
    voltage: Voltage | None = None
    camera: CameraRequest | None = None
    state: bool = False


_KEYS = tuple(field.encode_name for field in msgspec.structs.fields(Request))
_REPLY_FAULTS: tuple[ReplyFaultKind, ...] = ("drop", "corrupt", "truncate", "delay", "garbage")
_DECODER = msgspec.json.Decoder(Request)


def parse(line: bytes) -> Request:
    """Raises BadInput with a sentence for anything that is not a request."""
    try:
        request = _DECODER.decode(line)
    except msgspec.ValidationError as error:
        raise BadInput(f"This cannot be injected: {error}.", f"Known keys: {', '.join(_KEYS)}.") from error
    except msgspec.DecodeError as error:
        raise BadInput(f"Not JSON: {error}.", 'Example: {"drop": {"servo": 3, "count": 1}}') from error
    if request == Request():
        raise BadInput("Nothing was asked for.", f"Known keys: {', '.join(_KEYS)}.")
    return request


class Controller:
    """Carries out requests on the parts of one station. Called from connection threads; the parts guard themselves."""

    def __init__(
        self,
        arms: dict[str, VirtualArm],
        dynamics: Dynamics,
        operator: Operator | None,
        cameras: Cameras | None,
        plant: PlantThread,
    ) -> None:
        self._arms = arms
        self._dynamics = dynamics
        self._operator = operator
        self._cameras = cameras
        self._plant = plant

    def carry_out(self, request: Request) -> dict[str, Any]:
        """What to answer besides "ok". Raises BadInput before anything is changed where it can be known."""
        if request.clear:
            self._clear()
        if request.scene:
            self._scene(request.scene)
        if request.operator:
            self._operate(request.operator)
        for kind in _REPLY_FAULTS:
            fault: ReplyFault | None = getattr(request, kind)
            if fault:
                self._arm(fault.arm).faults.add(kind, fault)
        if request.vanish:
            self._arm(request.vanish.arm).port.unplug()
        if request.replug:
            self._arm(request.replug.arm).port.replug()
        if request.power:
            self._arm(request.power.arm).set_power(request.power.on)
        self._servo_faults(request)
        if request.camera:
            self._need_cameras().set_fault(request.camera.name, request.camera.fault)
        return {"state": self.state()} if request.state else {}

    def state(self) -> dict[str, Any]:
        """Joints as lerobot reads them, objects and the follower's fingertip in metres, counters since the start."""
        operator = self._operator
        tip = {"follower": {"fingertip": [round(value, 4) for value in self._dynamics.fingertip()]}}
        return {
            "arms": {
                name: {
                    "joints": dict(zip(JOINTS, (round(value, 3) for value in arm.joints_deg()), strict=True)),
                    "torque": [servo.torque_enabled for servo in arm.servos],
                    "status": [int(servo.status()) for servo in arm.servos],
                    "temperature_c": [round(servo.temperature_c, 1) for servo in arm.servos],
                    "plugged": arm.port.plugged,
                    "goal_writes": arm.goals.count,
                    "fault_hits": arm.faults.hits,
                    **tip.get(name, {}),
                }
                for name, arm in self._arms.items()
            },
            "objects": {name: [round(value, 4) for value in where] for name, where in self._dynamics.objects().items()},
            "scene_seed": self._dynamics.scene_seed,
            "operator": operator
            and {
                "doing": operator.doing,
                "paused": operator.paused,
                "task": operator.task.value,
                "cycles": operator.cycles,
            },
            "cameras": self._cameras.report() if self._cameras else {},
            "real_time_factor": round(self._plant.real_time_factor, 4),
        }

    def _clear(self) -> None:
        for arm in self._arms.values():
            arm.clear_faults()
        if self._cameras:
            self._cameras.set_fault(None, CameraFault.NONE)

    def _scene(self, wanted: SceneRequest) -> None:
        if unknown := set(wanted.place) - set(self._dynamics.scene.objects):
            raise BadInput(
                f"The scene has no {', '.join(sorted(unknown))}.",
                f"It has {', '.join(self._dynamics.scene.objects)}.",
            )
        if wanted.seed is not None:
            self._dynamics.scatter(wanted.seed)
        if wanted.place:
            self._dynamics.place({name: Pose2(*pose) for name, pose in wanted.place.items()})

    def _operate(self, wanted: Literal["pause", "resume"] | OperatorRequest) -> None:
        if self._operator is None:
            raise BadInput("This station has no leader arm, so it has no operator.", "Configure robot.leader.")
        match wanted:
            case "pause":
                self._operator.pause()
            case "resume":
                self._operator.resume()
            case OperatorRequest(pose, task, disc, reach):
                if pose is None and task is None and reach is None:
                    raise BadInput("The operator was given neither a pose nor a task nor a reach.", "Give one of them.")
                if task is not None:
                    self._operator.set_task(task, disc)
                    self._operator.resume()
                if pose is not None:
                    self._operator.go_to(pose)
                if reach is not None:
                    self._operator.reach(reach)

    def _servo_faults(self, request: Request) -> None:
        if fault := request.missing:
            self._servo(fault.arm, fault.servo).present = not fault.on
        if fault := request.reboot:
            with self._arm(fault.arm).locked():
                self._servo(fault.arm, fault.servo).power_cycle()
        if heat := request.overheat:
            self._servo(heat.arm, heat.servo).hot_c = heat.celsius if heat.on else None
        if fault := request.overload:
            with self._arm(fault.arm).locked():
                servo = self._servo(fault.arm, fault.servo)
                servo.latch(Status.OVERLOAD) if fault.on else servo.unlatch()
        if fault := request.stall:
            self._servo(fault.arm, fault.servo).stalled = fault.on
        if dip := request.voltage:
            arm = self._arm(dip.arm)
            for servo in arm.servos if dip.servo is None else [self._servo(dip.arm, dip.servo)]:
                servo.supply_v = NOMINAL_VOLTAGE_V if dip.volts is None else dip.volts

    def _arm(self, name: str) -> VirtualArm:
        if name not in self._arms:
            raise BadInput(f"This station has no {name} arm.", f"It has: {', '.join(self._arms)}.")
        return self._arms[name]

    def _servo(self, arm: str, servo: int | str) -> Servo:
        return self._arm(arm).servo(servo_id(servo))

    def _need_cameras(self) -> Cameras:
        if self._cameras is None:
            raise BadInput("This station runs without virtual cameras.", "Start it without --no-cameras.")
        return self._cameras
