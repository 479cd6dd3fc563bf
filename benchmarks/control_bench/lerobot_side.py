"""lerobot's own record loop, as `lerobot-record` runs it, in a process of its own.

    python -m benchmarks.control_bench.lerobot_side RUN.json

Everything is lerobot's: `record_loop`, robot, teleoperator, cameras, dataset writer, encoder settings. Around it stand
only clocks. Prints one JSON object on the last line of stdout.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from agent.config import load
from benchmarks.control_bench.host import children_of, cpu_between, cpu_s

TASK: Final = "follow the leader"


@dataclass(frozen=True)
class LerobotRun:
    """What to record. `streaming` False is `lerobot-record` without any option: PNG files, encoded at the end."""

    config: str
    root: str
    seconds: float
    streaming: bool = True
    vcodec: str | None = None  # None: lerobot's default, libsvtav1


def main(argv: list[str]) -> None:
    run = LerobotRun(**json.loads(Path(argv[1]).read_text()))
    print(json.dumps(record(run)), flush=True)


def record(run: LerobotRun) -> dict[str, Any]:
    """Record one episode. Times in ns of CLOCK_MONOTONIC, CPU in seconds of the whole process."""
    from lerobot.cameras.zmq import ZMQCameraConfig
    from lerobot.configs.dataset import DatasetRecordConfig
    from lerobot.datasets import (
        LeRobotDataset,
        VideoEncodingManager,
        aggregate_pipeline_dataset_features,
        create_initial_features,
    )
    from lerobot.processor import make_default_processors
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig
    from lerobot.scripts.lerobot_record import record_loop
    from lerobot.teleoperators.so_leader import SO101Leader, SO101LeaderConfig
    from lerobot.utils.feature_utils import combine_feature_dicts

    config = load(Path(run.config))
    leader = config.robot.leader
    assert leader is not None  # noqa: S101 - the benchmark's own configuration
    cameras = {
        name: ZMQCameraConfig(width=camera.width, height=camera.height, fps=camera.fps, **camera.options)
        for name, camera in config.cameras.items()
    }
    robot = SO101Follower(
        SO101FollowerConfig(
            port=str(config.robot.follower.port),
            id=config.robot.follower.id,
            calibration_dir=config.paths.follower_calibration.parent,
            cameras=cameras,
        )
    )
    teleop = SO101Leader(
        SO101LeaderConfig(
            port=str(leader.port),
            id=leader.id,
            calibration_dir=config.robot.calibration_dir / "teleoperators" / "so_leader",
        )
    )
    # From here to record_loop this is `lerobot.scripts.lerobot_record.record`, with its defaults.
    teleop_processor, action_processor, observation_processor = make_default_processors()
    features = combine_feature_dicts(
        aggregate_pipeline_dataset_features(
            pipeline=teleop_processor,
            initial_features=create_initial_features(action=robot.action_features),
            use_videos=True,
        ),
        aggregate_pipeline_dataset_features(
            pipeline=observation_processor,
            initial_features=create_initial_features(observation=robot.observation_features),
            use_videos=True,
        ),
    )
    defaults = DatasetRecordConfig(repo_id="bench/lerobot", root=run.root, fps=config.recording.fps)
    if run.vcodec is not None:
        defaults.rgb_encoder = type(defaults.rgb_encoder)(vcodec=run.vcodec)
    dataset = LeRobotDataset.create(
        defaults.repo_id,
        defaults.fps,
        root=defaults.root,
        robot_type=robot.name,
        features=features,
        use_videos=defaults.video,
        image_writer_processes=defaults.num_image_writer_processes,
        image_writer_threads=defaults.num_image_writer_threads_per_camera * len(robot.cameras),
        batch_encoding_size=defaults.video_encoding_batch_size,
        rgb_encoder=defaults.rgb_encoder,
        depth_encoder=defaults.depth_encoder,
        encoder_threads=defaults.encoder_threads,
        streaming_encoding=run.streaming,
        encoder_queue_maxsize=defaults.encoder_queue_maxsize,
    )
    teleop.connect()
    robot.connect()
    repeats = {name: Repeats(camera) for name, camera in robot.cameras.items()}
    sent_ns: list[int] = []
    robot.send_action = stamped(robot.send_action, sent_ns)
    events = {"exit_early": False, "rerecord_episode": False, "stop_recording": False}
    with VideoEncodingManager(dataset):
        before = cpu_s(children_of(os.getpid()))
        begin_ns = time.monotonic_ns()
        record_loop(
            robot=robot,
            events=events,
            fps=defaults.fps,
            teleop_action_processor=teleop_processor,
            robot_action_processor=action_processor,
            robot_observation_processor=observation_processor,
            teleop=teleop,
            dataset=dataset,
            control_time_s=run.seconds,
            single_task=TASK,
        )
        stop_ns = time.monotonic_ns()
        recorded = cpu_s(children_of(os.getpid()))
        dataset.save_episode()
        dataset.finalize()
        readable_ns = time.monotonic_ns()
        saved = cpu_s(children_of(os.getpid()))
    robot.disconnect()
    teleop.disconnect()
    return {
        "run": asdict(run),
        "begin_ns": begin_ns,
        "stop_ns": stop_ns,
        "readable_ns": readable_ns,
        "cpu_recording_s": cpu_between(before, recorded),
        "cpu_saving_s": cpu_between(recorded, saved),
        "rows": len(sent_ns),
        "repeats": {name: each.count for name, each in repeats.items()},
        "sent_ns": sent_ns,
    }


class Repeats:
    """Counts how often a camera handed out the frame that it had handed out before."""

    def __init__(self, camera: Any) -> None:
        self.count = 0
        self._read = camera.read_latest
        self._last: Any = None
        camera.read_latest = self._counted

    def _counted(self, *args: Any, **kwargs: Any) -> Any:
        frame = self._read(*args, **kwargs)
        self.count += frame is self._last
        self._last = frame
        return frame


def stamped[**P, R](call: Callable[P, R], at_ns: list[int]) -> Callable[P, R]:
    """`call`, noting when each call returned."""

    def noted(*args: P.args, **kwargs: P.kwargs) -> R:
        result = call(*args, **kwargs)
        at_ns.append(time.monotonic_ns())
        return result

    return noted


if __name__ == "__main__":
    main(sys.argv)
