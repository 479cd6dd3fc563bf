"""lerobot's own ways to run a policy on an arm, each in a process of its own.

    python -m benchmarks.task_bench.lerobot_side RUN.json

`sync` and `rtc` are the engines of `lerobot-rollout` in its own `BaseStrategy` loop; `async` is the client and server
of `lerobot.async_inference` on loopback. That server unpickles what it receives (CVE-2026-25874): never run it anywhere
but in this benchmark. Everything is lerobot's, around it stand only clocks and the injected inference time. Prints one
JSON object on the last line of standard output.
"""

import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from agent.config import StationConfig, load
from benchmarks.control_bench.rig import free_ports

FPS: Final = 30
QUEUE_THRESHOLD: Final = 30  # lerobot's default: a new chunk is begun when so many actions are left
HORIZON: Final = 10  # RTCConfig's default
SERVER_S: Final = 60.0
CONNECT_TRIES: Final = 10


@dataclass(frozen=True)
class LerobotRun:
    """What to run. `delay_s` is added to every prediction, as if the model were larger."""

    kind: str  # sync, rtc or async
    config: str
    policy: str  # folder of a bundle
    task: str
    seconds: float
    delay_s: float


def main(argv: list[str]) -> None:
    run = LerobotRun(**json.loads(Path(argv[1]).read_text()))
    os.chdir(Path(argv[1]).parent)  # lerobot's server writes its log where it stands
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    print(json.dumps({"sync": _rollout, "rtc": _rollout, "async": _client_and_server}[run.kind](run)), flush=True)
    os._exit(0)  # the engine's and the cameras' threads may not end


class Clocks:
    """Moments and durations, in seconds of CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.sent: list[float] = []  # when an action was sent
        self.handed: list[float] = []  # how long handing an observation over kept the control thread
        self.inferred: list[float] = []  # how long a prediction took, with the injected time
        self.reacted: list[float] = []  # from an observation to its chunk

    def around(self, call: Callable[..., Any], into: list[float], extra_s: float = 0.0) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.monotonic()
            result = call(*args, **kwargs)
            time.sleep(extra_s)
            into.append(time.monotonic() - begun)
            return result

        return timed

    def result(self, first: float) -> dict[str, Any]:
        return {
            "first": first,
            "sent": self.sent,
            "handed": self.handed,
            "inferred": self.inferred,
            "reacted": self.reacted,
        }


def _robot(config: StationConfig) -> tuple[Any, Any]:
    """lerobot's follower, connected, and its configuration, as `lerobot-rollout` would make them."""
    from lerobot.cameras.zmq import ZMQCameraConfig
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    cameras = {
        name: ZMQCameraConfig(width=camera.width, height=camera.height, fps=camera.fps, **camera.options)
        for name, camera in config.cameras.items()
    }
    settings = SO101FollowerConfig(
        port=str(config.robot.follower.port),
        id=config.robot.follower.id,
        calibration_dir=config.paths.follower_calibration.parent,
        cameras=cameras,
    )
    for attempt in range(CONNECT_TRIES):
        robot = SO101Follower(settings)
        try:
            robot.connect()
        except ConnectionError:  # it writes 30 registers, each once: on a busy host one reply comes late
            if attempt + 1 == CONNECT_TRIES:
                raise
        else:
            break
    return robot, settings


def _rollout(run: LerobotRun) -> dict[str, Any]:
    """`lerobot-rollout` with the policy already loaded: a context filled by hand, its own loop and engines."""
    import torch
    from lerobot.policies.rtc.configuration_rtc import RTCConfig
    from lerobot.processor import make_default_processors
    from lerobot.rollout.configs import BaseStrategyConfig
    from lerobot.rollout.inference.rtc import RTCInferenceEngine
    from lerobot.rollout.inference.sync import SyncInferenceEngine
    from lerobot.rollout.robot_wrapper import ThreadSafeRobot
    from lerobot.rollout.strategies.base import BaseStrategy
    from lerobot.utils.feature_utils import hw_to_dataset_features

    from agent.inference.bundle import open_bundle
    from agent.inference.loading import load_policy

    torch.set_num_threads(1)
    loaded = load_policy(open_bundle(Path(run.policy)))
    policy, clocks = loaded.policy, Clocks()
    robot, _ = _robot(load(Path(run.config)))
    wrapper = ThreadSafeRobot(robot)
    observed = hw_to_dataset_features(robot.observation_features, "observation", use_video=False)
    acted = hw_to_dataset_features(robot.action_features, "action", use_video=False)
    keys = list(acted["action"]["names"])
    stop = threading.Event()
    if run.kind == "rtc":
        policy.config.rtc_config = RTCConfig(enabled=True, execution_horizon=HORIZON)
        policy.init_rtc_processor()
        policy.model.config.rtc_config = policy.config.rtc_config
        policy.predict_action_chunk = clocks.around(policy.predict_action_chunk, clocks.inferred, run.delay_s)
        # The engine asks whether the method takes the arguments of real-time chunking: `timed` takes all.
        engine: Any = RTCInferenceEngine(
            policy, loaded.preprocessor, loaded.postprocessor, wrapper, policy.config.rtc_config, observed, run.task,
            float(FPS), "cpu", rtc_queue_threshold=QUEUE_THRESHOLD, shutdown_event=stop,
        )  # fmt: skip
    else:
        policy._get_action_chunk = clocks.around(policy._get_action_chunk, clocks.inferred, run.delay_s)
        engine = SyncInferenceEngine(
            policy, loaded.preprocessor, loaded.postprocessor, {**observed, **acted}, keys, run.task, "cpu", robot.name
        )
    engine.notify_observation = clocks.around(engine.notify_observation, clocks.handed)
    send = robot.send_action

    def sent(action: Any) -> Any:
        result = send(action)
        clocks.sent.append(time.monotonic())
        return result

    robot.send_action = sent
    _, action_processor, observation_processor = make_default_processors()
    settings = SimpleNamespace(
        fps=FPS, duration=run.seconds, use_torch_compile=False, display_data=False, interpolation_multiplier=1,
        return_to_initial_position=False,
    )  # fmt: skip
    context: Any = SimpleNamespace(
        runtime=SimpleNamespace(cfg=settings, shutdown_event=stop),
        hardware=SimpleNamespace(robot_wrapper=wrapper, teleop=None, initial_position=None),
        policy=SimpleNamespace(inference=engine),
        processors=SimpleNamespace(
            robot_observation_processor=observation_processor, robot_action_processor=action_processor
        ),
        data=SimpleNamespace(dataset_features={**observed, **acted}, ordered_action_keys=keys),
    )
    strategy = BaseStrategy(BaseStrategyConfig())
    strategy.setup(context)
    first = time.monotonic()
    _say_begun()
    strategy.run(context)
    return clocks.result(first)


def _client_and_server(run: LerobotRun) -> dict[str, Any]:
    """lerobot's RobotClient here and its PolicyServer in another process, over gRPC on loopback."""
    from agent.inference.bundle import open_bundle

    port = free_ports(1)[0]
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    stop: Any = context.Event()
    folder = _self_contained(open_bundle(Path(run.policy)))
    server = context.Process(target=_serve, args=(port, run.delay_s, results, stop))
    server.start()
    results.get(timeout=SERVER_S)

    import lerobot.async_inference.robot_client as client_module
    from lerobot.async_inference.configs import RobotClientConfig

    logging.disable(logging.WARNING)
    clocks = Clocks()
    robot, settings = _robot(load(Path(run.config)))
    robot.connect = lambda: None  # done
    client_module.make_robot_from_config = lambda _: robot
    send = robot.send_action

    def sent(action: Any) -> Any:
        result = send(action)
        clocks.sent.append(time.monotonic())
        return result

    robot.send_action = sent
    client = client_module.RobotClient(
        RobotClientConfig(
            policy_type="smolvla", pretrained_name_or_path=str(folder), robot=settings, actions_per_chunk=50,
            task=run.task, server_address=f"127.0.0.1:{port}", policy_device="cpu", fps=FPS,
        )
    )  # fmt: skip
    if not client.start():
        raise RuntimeError("lerobot's client found no server")
    client.send_observation = clocks.around(client.send_observation, clocks.handed)
    take = client._aggregate_action_queues

    def taken(actions: Any, *args: Any, **kwargs: Any) -> Any:
        clocks.reacted.append(time.time() - actions[0].get_timestamp())
        return take(actions, *args, **kwargs)

    client._aggregate_action_queues = taken
    threading.Thread(target=client.receive_actions, daemon=True).start()
    first = time.monotonic()
    _say_begun()
    threading.Timer(run.seconds, client.shutdown_event.set).start()
    client.control_loop(task=run.task)
    stop.set()
    clocks.inferred = results.get(timeout=SERVER_S)
    server.terminate()  # gRPC's threads keep it
    server.join()
    return clocks.result(first)


def _self_contained(bundle: Any) -> Path:
    """A copy that names the bundle's folders: the server looks the VLM and the tokenizer up by names in the files."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="so-bench-policy-"))
    shutil.copytree(bundle.policy, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config["vlm_model_name"], config["load_vlm_weights"] = str(bundle.vlm), False
    (folder / "config.json").write_text(json.dumps(config))
    steps = json.loads((folder / "policy_preprocessor.json").read_text())
    for step in steps["steps"]:
        if step.get("registry_name") == "tokenizer_processor":
            step["config"]["tokenizer_name"] = str(bundle.vlm)
    (folder / "policy_preprocessor.json").write_text(json.dumps(steps))
    return folder


def _serve(port: int, delay_s: float, results: Any, stop: Any) -> None:
    from concurrent import futures

    import grpc
    import lerobot.async_inference.policy_server as server_module
    import torch
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.transport import services_pb2_grpc

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    clocks = Clocks()
    policy_server = server_module.PolicyServer(
        PolicyServerConfig(host="127.0.0.1", port=port, fps=FPS, inference_latency=0.0)
    )
    policy_server._get_action_chunk = clocks.around(policy_server._get_action_chunk, clocks.inferred, delay_s)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(policy_server, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    results.put("ready")
    stop.wait()
    results.put(clocks.inferred)
    server.stop(0)


def _say_begun() -> None:
    print(json.dumps({"begun": time.monotonic()}), flush=True)


if __name__ == "__main__":
    main(sys.argv)
