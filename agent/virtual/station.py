"""The virtual station as a program: arms on their ports, cameras on theirs, a control socket, an operator."""

import contextlib
import functools
import json
import signal
import socket
import socketserver
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from agent.config import Camera, StationConfig
from agent.errors import AgentError, BadInput
from agent.virtual import calibration
from agent.virtual.arm import Plant, PlantThread, VirtualArm
from agent.virtual.cameras import Cameras, CameraSpec
from agent.virtual.control import Controller, parse
from agent.virtual.dynamics import Dynamics
from agent.virtual.operator import REST, Operator
from agent.virtual.realtime import keep_answering, run_like_hardware
from agent.virtual.scene import CUBES, DISCS, SceneModel
from agent.virtual.wire_file import WireFile

STEP_S: Final = 0.004  # two steps of the simulation
WATCH_S: Final = 0.5


class _Line(socketserver.StreamRequestHandler):
    """One connection: a line of JSON in, a line of JSON out, until the client closes."""

    def handle(self) -> None:
        server = self.server
        if not isinstance(server, _ControlServer):
            raise TypeError("served by another kind of server")
        with contextlib.suppress(ConnectionError):  # asked and left
            for line in self.rfile:
                self.wfile.write(json.dumps(server.answer(line)).encode() + b"\n")


class _ControlServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path, controller: Controller) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _answers(path):
            raise BadInput(
                f"A virtual station already serves {path}.", "Stop it, or give this one another state_dir or run_dir."
            )
        path.unlink(missing_ok=True)
        self._controller = controller
        self._path = path
        super().__init__(str(path), _Line)

    def answer(self, line: bytes) -> dict[str, Any]:
        try:
            return {"ok": True, **self._controller.carry_out(parse(line))}
        except AgentError as error:
            return {"ok": False, "code": error.code, "message": error.message, "hint": error.hint}

    def serve(self) -> None:
        """Until `shutdown`. Threads of connections inherit the priority of this one."""
        run_like_hardware()
        self.serve_forever()

    def close(self) -> None:
        self.server_close()
        self._path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


class Station:
    """Everything of one virtual station. A context manager; entering it returns when all of it serves."""

    def __init__(
        self,
        config: StationConfig,
        *,
        seed: int = 0,
        stamp: bool = False,
        cameras: bool = True,
        wire_log: Path | None = None,
        paced: bool = False,
        discs: tuple[str, ...] = DISCS,
        cubes: tuple[str, ...] = CUBES,
    ) -> None:
        self._closing = contextlib.ExitStack()
        paths, robot = config.paths, config.robot
        self.follower = VirtualArm(
            robot.follower.port,
            _calibration(paths.follower_calibration, robot.model, "follower"),
            moved=False,
            paced=paced,
        )
        self.arms = {"follower": self.follower}
        scene = SceneModel(robot.model, discs, cubes)
        self.dynamics = Dynamics(scene, self.follower, seed)
        self.dynamics.place_arm(REST)
        plants: list[Plant] = [self.dynamics]
        self.operator: Operator | None = None
        if robot.leader and paths.leader_calibration:
            leader = VirtualArm(
                robot.leader.port,
                _calibration(paths.leader_calibration, robot.model, "leader"),
                moved=False,
                paced=paced,
            )
            self.arms["leader"] = leader
            self.operator = Operator(leader, self.dynamics, seed)
            plants.append(self.operator)
        specs = _specs(config) if cameras else []
        self.cameras = Cameras(self.dynamics, specs, self.follower.goals, stamp=stamp, seed=seed) if specs else None
        self.plant = PlantThread(plants, STEP_S)
        self.controller = Controller(self.arms, self.dynamics, self.operator, self.cameras, self.plant)
        self._socket_path = paths.virtual_ctl
        self._wire_log = wire_log

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            server = _ControlServer(self._socket_path, self.controller)  # first: it refuses a second station
            stack.callback(server.close)
            self._log_goals(stack)
            if self.operator:
                stack.callback(self.operator.close)
            self.plant.start()
            stack.callback(self.plant.stop)
            if self.cameras:
                stack.callback(self.cameras.stop)
                self.cameras.start()
            for arm in self.arms.values():
                arm.port.replug()
                stack.callback(arm.port.unplug)
            threading.Thread(target=server.serve, name="control", daemon=True).start()
            stack.callback(server.shutdown)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.close()

    def _log_goals(self, stack: contextlib.ExitStack) -> None:
        if self._wire_log is None:
            return
        file = WireFile(self._wire_log)
        stack.callback(file.close)
        for name, arm in self.arms.items():
            arm.goals.sink = functools.partial(file.append, name)


def run(
    config: StationConfig,
    *,
    seed: int = 0,
    stamp: bool = False,
    cameras: bool = True,
    wire_log: Path | None = None,
    paced: bool = False,
    discs: tuple[str, ...] = DISCS,
    cubes: tuple[str, ...] = CUBES,
) -> None:
    """Serve until SIGTERM or SIGINT. Call it from the main thread of a process of its own."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Station(
        config,
        seed=seed,
        stamp=stamp,
        cameras=cameras,
        wire_log=wire_log,
        paced=paced,
        discs=discs,
        cubes=cubes,
    ) as station:
        keep_answering()
        run_like_hardware()
        sys.stdout.write(f"virtual station ready: {config.station} ({config.robot.model}), {_places(station)}\n")
        sys.stdout.flush()
        while not stop.wait(WATCH_S):
            if station.cameras:
                station.cameras.look_after()
            if not station.plant.alive:
                raise AgentError("The virtual mechanics stopped.", "See the error above.")


def _places(station: Station) -> str:
    arms = [f"{name} {arm.link}" for name, arm in station.arms.items()]
    return ", ".join([*arms, *(f"camera {name}" for name in (station.cameras.report() if station.cameras else ()))])


def _calibration(path: Path, model: Any, arm: Any) -> calibration.Calibration:
    """The file's calibration; where there is none, one is made up and written there."""
    if path.exists():
        return calibration.load(path)
    made = calibration.default_calibration(model, arm)
    calibration.save(path, made)
    return made


def _specs(config: StationConfig) -> list[CameraSpec]:
    return [_spec(name, camera) for name, camera in config.cameras.items() if camera.type == "zmq"]


def _spec(name: str, camera: Camera) -> CameraSpec:
    options = camera.options
    try:
        return CameraSpec(
            name=name,
            address=str(options["server_address"]),
            port=int(options["port"]),
            published_as=str(options.get("camera_name", name)),
            width=camera.width,
            height=camera.height,
            fps=camera.fps,
        )
    except (KeyError, ValueError) as error:
        raise BadInput(
            f"cameras.{name}.options: {error} is missing or not usable for a zmq camera.",
            "Give server_address and port, as in configs/so101/virtual.yaml.",
        ) from error
